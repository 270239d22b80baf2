use super::*;

fn found(source: &str, contract: Contract) -> Vec<String> {
    let line = |problem: &Problem| {
        let (line, column) = (problem.line.unwrap_or(0), problem.column.unwrap_or(0));
        let mark = if problem.is_error() { "" } else { "?" };
        format!("{line}:{column} {mark}{} {}", problem.code, problem.message)
    };
    study(source, contract).problems.iter().map(line).collect()
}

/// Each expected text is the beginning of what is found, in order; nothing else may be found.
#[track_caller]
fn check(source: &str, contract: Contract, expected: &[&str]) {
    let found = found(source, contract);
    let agrees = found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| a.starts_with(b));
    assert!(agrees, "{source}\nfound: {found:#?}\nexpected: {expected:#?}");
}

/// The body of a handler on its second line.
fn body(text: &str) -> String {
    format!("export default async ({{ ctx, log, input }}) => {{\n{text}\n}};\n")
}

#[test]
fn members_that_are_not_there() {
    for (text, expected) in [
        ("await ctx.tool('a.b', {})", &[][..]),
        ("await ctx.tools('a')", &["2:11 unknown_ctx_member ctx.tools does not exist"]),
        ("ctx\n  .nope()", &["3:4 unknown_ctx_member ctx.nope"]),
        ("ctx.state.put('a', 1)", &["2:11 unknown_ctx_member ctx.state.put"]),
        ("ctx?.state?.gett?.('a')", &["2:13 unknown_ctx_member ctx.state.gett"]),
        ("ctx['nope']; ctx[`nope2`]; ctx[input]", &["2:5 unknown_ctx_member ctx.nope", "2:18 unknown_ctx_member"]),
        ("const key = 'nope'; return ctx[key]", &["2:32 unknown_ctx_member ctx.nope"]),
        ("const { tool, tol } = ctx; await tool('a.b')", &["2:15 unknown_ctx_member ctx.tol"]),
        ("const { state: { gett: read } } = ctx", &["2:18 unknown_ctx_member ctx.state.gett"]),
        ("const { tol = 1 } = ctx", &["2:9 unknown_ctx_member"]),
        ("const c = ctx; const s = c.state; return s.nope", &["2:44 unknown_ctx_member ctx.state.nope"]),
        ("let c = ctx; c = input; return c.nope", &[]),
        ("var c = ctx; var c = input; return c.nope", &[]),
        ("for (const c of [ctx]) c.nope", &[]),
        ("{ const ctx = input; ctx.nope }", &[]),
        ("input.map((ctx) => ctx.nope)", &[]),
        ("return ((ctx)).nope", &["2:16 unknown_ctx_member"]),
        ("return (ctx ?? input).nope", &["2:23 unknown_ctx_member"]),
        ("return (input ? ctx : input).nope", &[]),
        ("if ('fetch' in ctx) return ctx.fetch('x')", &[]),
        ("return ctx.toString() + ctx.hasOwnProperty('x') + ctx.then", &[]),
        ("return [ctx.run.id, ctx.input.any, ctx.abortSignal.aborted, ctx.run.trigger.missed]", &[]),
        ("return ctx.run.runId", &["2:16 ?unknown_ctx_member ctx.run.runId does not exist; it is undefined"]),
        ("return ctx.run.trigger.kind", &["2:24 ?unknown_ctx_member ctx.run.trigger.kind"]),
        ("log.debug('x')", &["2:5 unknown_log_member log.debug does not exist"]),
        ("log.level; ctx.log.trace('x')", &["2:5 ?unknown_log_member", "2:20 unknown_log_member log.trace"]),
        ("ctx.state('x'); ctx.run()", &["2:1 not_a_function ctx.state is no", "2:17 not_a_function ctx.run is no"]),
        ("ctx.state = {}; ctx.run.id = 'x'", &["2:5 read_only ctx.state cannot", "2:25 read_only ctx.run.id cannot"]),
        ("await ctx.invoke('a b'); await ctx.invoke('a/b'); await ctx.invoke('b')", &["2:18 not_a_handle \"a b\""]),
        ("// ctx.nope\n/* ctx.nope */ return 'ctx.nope' + /ctx.nope/.source + `ctx.nope`", &[]),
        ("return `${ `${ctx.nope}` } ctx.nope`", &["2:19 unknown_ctx_member"]),
        ("/* äö💥 */ ctx.nope", &["2:15 unknown_ctx_member"]),
        ("my.ctx.nope; this.ctx.nope", &["2:1 ?absent_global `my`"]),
        ("class A { #ctx = 1; get() { return this.#ctx.nope } }", &[]),
        ("let c; c = ctx; return c.nope", &["2:26 unknown_ctx_member"]),
        ("let c; if (input) c = ctx; else c = {}; return c.nope", &[]),
        ("for (let c of [{}]) { c.nope; c = ctx }", &[]),
        ("let c = {}; c.nope(); c = ctx", &[]),
        (
            "let tol, put; ({ tol } = ctx); ({ put, set: put } = ctx.state)",
            &["2:18 unknown_ctx_member ctx.tol", "2:35 unknown"],
        ),
        ("let at; ({ at = 1 } = ctx.run)", &[]),
        ("if (Object.hasOwn(ctx, 'batch')) ctx.batch()", &[]),
        ("ctx.hasOwnProperty('a') && ctx.a; Object.prototype.hasOwnProperty.call(ctx, 'b') && ctx.b", &[]),
        ("Reflect.has(ctx, 'c') ? ctx.c : ctx.d", &["2:37 unknown_ctx_member ctx.d"]),
        ("if (ctx.fetch) return 1", &["2:9 unknown_ctx_member"]),
        ("if (log.debug) log.debug('x'); (log.trace ?? log.info)('x'); log.fatal?.('x')", &[]),
        ("if (input && log.debug) log.debug('x')", &[]),
        ("return ctx.run.trigger.kind ?? 'x'", &["2:24 ?unknown_ctx_member"]),
    ] {
        check(&body(text), Contract::Automation, expected);
    }
}

#[test]
fn objects_are_followed_into_functions_of_the_handlers_own() {
    for (source, expected) in [
        ("export default ({ ctx: { tol } }) => tol", &["1:26 unknown_ctx_member ctx.tol"][..]),
        ("export default ({ ctx: c }) => c.nope", &["1:34 unknown_ctx_member"]),
        ("export default ({ ctx } = {}) => ctx.nope", &["1:38 unknown_ctx_member"]),
        ("export default (args) => args.ctx.nope", &["1:35 unknown_ctx_member"]),
        ("export default (args) => { const { ctx } = args; ctx.nope }", &["1:54 unknown_ctx_member"]),
        ("export default (args) => { args.ctx = {}; args.ctx.nope }", &[]),
        ("export default function ({ ctx }) { ctx.nope }", &["1:41 unknown_ctx_member"]),
        ("export default function run({ ctx }) { ctx.nope }", &["1:44 unknown_ctx_member"]),
        ("export default function run({ ctx }) { ctx.nope; run({ ctx: {} }) }", &[]),
        ("const run = ({ ctx }) => ctx.nope;\nexport default run;", &["1:30 unknown_ctx_member"]),
        ("async function run({ ctx }) { ctx.nope }\nexport { run as default };", &["1:35 unknown_ctx_member"]),
        ("export default wrap(({ ctx }) => ctx.nope);\nfunction wrap(f) { return f }", &[]),
        ("export default ({ ctx }) => f(ctx);\nfunction f(c) { c.nope }", &["2:19 unknown_ctx_member"]),
        ("export default ({ ctx }) => { f(ctx); f(ctx) };\nconst f = (c) => c.nope", &["2:20 unknown_ctx_member"]),
        ("export default ({ ctx }) => { f(ctx); f({}) };\nconst f = (c) => c.nope", &[]),
        ("export default ({ ctx }) => { f(ctx); [1].map(f) };\nconst f = (c) => c.nope", &[]),
        ("export default ({ ctx }) => { f(...ctx) };\nconst f = (c) => c.nope", &[]),
        (
            "export default ({ ctx }) => f(1, ctx);\nfunction f(n, c) { c.nope; g(c) }\nfunction g(c) { c.gone }",
            &["2:22 unknown_ctx_member", "3:19 unknown_ctx_member"],
        ),
        ("export default ({ ctx }) => f({ ctx, n: 1 });\nfunction f({ ctx, n }) { ctx.nope }", &["2:30 unknown"]),
        ("export default ({ ctx }) => f({ ...ctx, ctx });\nfunction f({ ctx }) { ctx.nope }", &[]),
        ("export default ({ ctx }) => f(ctx, 3);\nfunction f(c, n) { if (n) f(c, n - 1); c.nope }", &["2:42 unknown"]),
        ("export default ({ ctx }) => f(ctx);\nfunction f(c = null) { c.nope }", &["2:26 unknown_ctx_member"]),
        ("export default ({ ctx, db, wait = 5, ...rest }) => 1", &["1:24 ?unknown_argument `db` is no part of"]),
        ("export default (args) => args.context", &["1:31 ?unknown_argument `context`"]),
        ("export default (ctx) => ctx.tool('a.b')", &["1:29 unknown_argument `tool` is no part of"]),
        ("export default (args) => { args.help = () => 1; return args.help() }", &[]),
        ("export default (args) => { Object.assign(args, { help() {} }); return args.help() }", &[]),
        ("export default async (ctx, log, input) => {}", &["1:28 ?unknown_argument an automation is given one"]),
        ("export default async (args, helpers = {}) => helpers", &[]),
        ("export default ({ ctx }) => ((c) => c.nope)(ctx)", &["1:39 unknown_ctx_member"]),
        ("export default ({ ctx }) => (function f(c) { f({}); c.nope })(ctx)", &[]),
        ("const f = function g(c) { c.nope };\nexport default ({ ctx }) => f(ctx)", &["1:29 unknown_ctx_member"]),
        (
            "const s = { f(c) { c.nope }, g: (c) => c.gone };\nexport default ({ ctx }) => s.f(ctx) + s.g({})",
            &["1:22 unknown"],
        ),
        ("const s = { f(c) { c.nope } };\nexport default ({ ctx }) => s.f(ctx) + [1].map(s.f)", &[]),
        ("const s = { f(c) { c.nope }, g() { this.f({}) } };\nexport default ({ ctx }) => s.f(ctx)", &[]),
        ("const s = { f(c) { c.nope } };\ns.f = (c) => c;\nexport default ({ ctx }) => s.f(ctx)", &[]),
        ("const s = { f(c) { c.nope } };\nexport default ({ ctx, input }) => s.f(ctx) + s[input]({})", &[]),
        ("function f() { return ctx.tool('a.b') }\nexport default ({ ctx }) => f()", &["1:23 ?absent_global `ctx`"]),
    ] {
        check(source, Contract::Automation, expected);
    }
}

#[test]
fn promises_that_nobody_awaits() {
    for (text, expected) in [
        ("ctx.tool('a.b')", &["2:1 ?not_awaited nobody awaits this ctx.tool: it is cancelled"][..]),
        ("ctx.state.set('a', 1); await ctx.state.set('b', 1)", &["2:1 ?not_awaited nobody awaits this ctx.state.set"]),
        ("void ctx.tool('a.b'); const p = ctx.tool('a.b'); await p", &[]),
        ("if (input) ctx.invoke('x')", &["2:12 ?not_awaited"]),
        ("input && ctx.invoke('x')", &["2:10 ?not_awaited"]),
        ("ctx.tool('a.b').then((x) => log.info(x)).catch(() => {})", &["2:1 ?not_awaited"]),
        ("await ctx.tool('a.b').then((x) => log.info(x))", &[]),
        ("await Promise.all([1].map((i) => ctx.tool('a.b', { i })))", &[]),
        ("return ctx.tool('a.b')", &[]),
        ("log.info('x'); ctx.log.warn('y')", &[]),
        ("const n = ctx.state.get('n') ?? 0", &["2:11 ?not_awaited ctx.state.get(…) gives a promise, which is always"]),
        ("if (!ctx.state.get('n')) return", &["2:6 ?not_awaited"]),
        ("const n = (await ctx.state.get('n')) ?? 0", &[]),
        ("return ctx.state.get('n').count", &["2:27 ?not_awaited ctx.state.get(…) gives a promise, which has no such"]),
        ("const runs = ctx.runs.list(); return runs.map((r) => r.runId)", &["2:43 ?not_awaited"]),
        ("return ctx.runs.list()[0]", &["2:24 ?not_awaited"]),
        ("const { output } = ctx.invoke('x')", &["2:7 ?not_awaited"]),
        ("const [a] = ctx.runs.list()", &["2:7 ?not_awaited"]),
        ("const { output } = await ctx.invoke('x'); return output", &[]),
        ("const p = ctx.tool('a.b'); return p.then((x) => x.y)", &[]),
        (
            "if (ctx.state.get('a') && input) return",
            &["2:5 ?not_awaited ctx.state.get(…) gives a promise, which is always"],
        ),
        ("while (ctx.state.get('a')) await 1", &["2:8 ?not_awaited"]),
        ("return ctx.state.get('n') + 1", &["2:8 ?not_awaited ctx.state.get(…) gives a promise, and there is nothing"]),
        ("return `${ctx.state.get('n')}`", &["2:11 ?not_awaited ctx.state.get(…) gives a promise, which has no text"]),
        ("return ctx.state.get('n') instanceof Promise", &[]),
        (
            "for (const run of ctx.runs.list()) log.info(run)",
            &["2:19 ?not_awaited ctx.runs.list(…) gives a promise, which is no"],
        ),
        ("for await (const text of [ctx.agent({ prompt: '' })]) log.info(text)", &[]),
        ("return [...ctx.runs.list()]", &["2:12 ?not_awaited"]),
        (
            "return { output: { n: [ctx.state.get('n')] } }",
            &["2:24 ?not_awaited ctx.state.get(…) gives a promise, which is {} in"],
        ),
        ("const f = () => { return { a: ctx.state.get('n') } }; return { output: await f().a }", &[]),
        ("await ctx.state.set('a', { b: ctx.state.get('b') })", &["2:31 ?not_awaited"]),
        ("await Promise.all([ctx.state.get('b')])", &[]),
    ] {
        check(&body(text), Contract::Automation, expected);
    }
}

#[test]
fn arguments_that_are_written_down() {
    for (text, expected) in [
        ("await ctx.tool()", &["2:7 bad_argument ctx.tool(name, args) is not given the name of a tool"][..]),
        (
            "await ctx.tool({ name: 'a.b' })",
            &["2:16 bad_argument ctx.tool(name, args) takes the name of a tool as a text, not an object"],
        ),
        ("await ctx.tool(''); await ctx.tool(5)", &["2:16 bad_argument", "2:36 bad_argument"]),
        ("await ctx.tool('a.b', 'x')", &["2:23 bad_argument ctx.tool(name, args): args must be an object, not a text"]),
        (
            "await ctx.tool('a.b', ['x'])",
            &["2:23 bad_argument ctx.tool(name, args): args must be an object, not a list"],
        ),
        ("await ctx.tool('a.b', null); await ctx.tool('a.b', undefined); await ctx.tool('a.b', input)", &[]),
        ("await ctx.tool(...input); await ctx.tool(input, ...input)", &[]),
        ("return { summary: await ctx.agent() }", &["2:25 bad_argument ctx.agent({ prompt, json? }) is given nothing"]),
        ("await ctx.agent('text')", &["2:17 bad_argument ctx.agent({ prompt, json? }) takes an object, not a text"]),
        ("const text = `x`; await ctx.agent(text)", &["2:35 bad_argument"]),
        ("await ctx.agent({})", &["2:17 bad_argument ctx.agent({ prompt, json? }) has no `prompt` here"]),
        (
            "await ctx.agent({ prompt: ['x'] })",
            &["2:27 bad_argument ctx.agent({ prompt, json? }): prompt must be a text"],
        ),
        (
            "await ctx.agent({ prompt: 'x', schema: {} })",
            &["2:32 unknown_option ctx.agent has no option \"schema\", and"],
        ),
        ("await ctx.agent({ prompt: 'x', jsn: {}, 'max-tokens': 5 })", &["2:32 unknown_option", "2:41 unknown_option"]),
        ("await ctx.agent({ ...input }); await ctx.agent({ [input]: 'x' }); await ctx.agent(input)", &[]),
        ("const prompt = input; await ctx.agent({ prompt, json: {} })", &[]),
        ("await ctx.invoke()", &["2:7 bad_argument ctx.invoke(handle, { input }) is not given the handle"]),
        ("await ctx.invoke(5)", &["2:18 bad_argument"]),
        (
            "await ctx.invoke('x', 'y')",
            &["2:23 bad_argument ctx.invoke(handle, { input }): the second argument must be"],
        ),
        (
            "await ctx.invoke('x', { name: 'y' })",
            &["2:25 ?unknown_option nobody reads \"name\" of ctx.invoke's second"],
        ),
        (
            "await ctx.invoke('x', { input: { name: 'y' } }); await ctx.invoke('x', null); await ctx.invoke(input, input)",
            &[],
        ),
        (
            "return { summary: 'x', result: 5 }",
            &["2:24 ?unknown_option nobody reads \"result\" of what a handler returns"],
        ),
        ("if (input) return { outptu: 5 }; return input ? { ok: 1 } : null", &["2:21 ?unknown_option"]),
        ("return { summary: 'x', output: { result: 5 } }", &[]),
        ("return { ...input, summary: 'x' }", &[]),
        ("return input.map((n) => ({ n })).filter((x) => { return { y: x } })", &[]),
    ] {
        check(&body(text), Contract::Automation, expected);
    }
    check("export default () => ({ result: 1 })", Contract::Automation, &["1:25 ?unknown_option"]);
    check("export default () => ({ result: 1 })", Contract::Query, &[]);
    let hint = |text: &str| study(&body(text), Contract::Automation).problems[0].hint.clone().unwrap();
    assert_eq!(hint("return { sumary: 'x' }"), "did you mean `summary`?");
    assert_eq!(hint("return { rows: [] }"), "a handler returns { summary, output }: put it into `output`");
    assert!(hint("await ctx.agent({ prompt: '', schema: {} })").starts_with("did you mean `json`?"));
    assert_eq!(hint("await ctx.agent({ prompt: '', temperature: 1 })"), "it has: prompt, json");
}

#[test]
fn calls_in_callbacks_that_nobody_awaits() {
    const EACH: &str = "?not_awaited nobody awaits this ctx.tool in forEach(…), which";
    const TIMER: &str = "?not_awaited nobody awaits this ctx.tool in a timer, which";
    const MAP: &str = "?not_awaited nobody awaits this ctx.tool in map(…), whose list";
    for (text, expected) in [
        ("input.forEach(async (x) => { await ctx.tool('a.b', { x }) })", &[("2:36", EACH)][..]),
        ("input.forEach(async (x) => {\nconst y = (await ctx.tool('a.b')).y; await ctx.tool(y) })", &[("3:18", EACH)]),
        ("input.forEach((x) => ctx.tool('a.b', { x }))", &[("2:22", EACH)]),
        ("await input?.items?.forEach(async function (x) { if (x) await ctx.tool('a.b') })", &[("2:63", EACH)]),
        ("input.forEach(async (x) => await ctx.tool('a.b', { x }).catch(() => x))", &[("2:34", EACH)]),
        ("input.forEach((x) => { return x && ctx.tool('a.b').then(log.info) })", &[("2:36", EACH)]),
        ("setTimeout(() => ctx.tool('a.b'), 50)", &[("2:18", TIMER)]),
        ("setTimeout(async () => { await ctx.tool('a.b') }, 50)", &[("2:32", TIMER)]),
        ("setTimeout(() => { ctx.tool('a.b') }, 50)", &[("2:20", "?not_awaited nobody awaits this ctx.tool: it")]),
        ("input.map((x) => ctx.tool('a.b', { x }))", &[("2:18", MAP)]),
        ("await input.map(async (x) => { await ctx.tool('a.b', { x }) })", &[("2:38", MAP)]),
        ("const calls = input.map((x) => ctx.tool('a.b', { x }))", &[("2:32", MAP)]),
        ("const calls = input.map((x) => ctx.tool('a.b', { x })); await Promise.all(calls)", &[]),
        ("await Promise.all(input.map(async (x) => { await ctx.tool('a.b', { x }) }))", &[]),
        ("const all = []; input.forEach((x) => { all.push(ctx.tool('a.b', { x })) }); await Promise.all(all)", &[]),
        ("const p = {}; input.forEach((x) => { p[x] = ctx.tool('a.b') }); await Promise.all(Object.values(p))", &[]),
        ("await new Promise((done) => setTimeout(async () => { await ctx.tool('a.b'); done() }, 5))", &[]),
        ("await new Promise((done) => setTimeout(() => ctx.tool('a.b').then(done, done), 5))", &[]),
        ("for (const x of input) { await ctx.tool('a.b', { x }) }", &[]),
        ("const setTimeout = (f) => f(); await setTimeout(() => ctx.tool('a.b'))", &[]),
        ("input.forEach((x) => void ctx.tool('a.b', { x }))", &[]),
        ("input.forEach((x) => log.info(x)); setTimeout(() => log.info('x'), 5)", &[]),
        ("const run = async (x) => { await ctx.tool('a.b', { x }) }; for (const x of input) await run(x)", &[]),
    ] {
        let expected: Vec<String> = expected.iter().map(|(place, told)| format!("{place} {told}")).collect();
        check(&body(text), Contract::Automation, &expected.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

#[test]
fn databases_of_queries_and_actions() {
    for (body, expected) in [
        ("return db.prepare('x').all(1)", &[][..]),
        ("return db.query('x')", &["2:11 unknown_db_member db.query does not exist"]),
        ("return db.prepare('x').iterate()", &["2:24 unknown_db_member db.prepare().iterate"]),
        ("const s = db.prepare('x'); return s.first()", &["2:37 unknown_db_member"]),
        ("return db.prepare('x').all().map((r) => r.id)", &["2:30 ?not_awaited all(…) gives a promise"]),
        ("return (await db.prepare('x').all()).map((r) => r.id)", &[]),
        ("db.exec('x')", &[]),
        ("return db.transaction(async (tx) => { await tx.run('x') })", &["2:48 unknown_db_member tx.run"]),
        ("return db.transaction(async ({ prepare, get }) => prepare('x').get())", &["2:41 unknown_db_member tx.get"]),
        ("return Date.now() + Math.random()", &[]),
    ] {
        let source = format!("export default async ({{ db, input }}) => {{\n{body}\n}}");
        check(&source, Contract::Query, expected);
        check(&source, Contract::Action, expected);
    }
    check(
        "export default ({ ctx, body }) => 1",
        Contract::Query,
        &["1:19 ?unknown_argument", "1:24 ?unknown_argument"],
    );
    check("export default ({ body, query }) => 1", Contract::Action, &["1:25 ?unknown_argument `query`"]);
    check("export default ({ db }, input) => db.prepare('x').get(input.id)", Contract::Query, &[]);
}

#[test]
fn modules() {
    for (source, expected) in [
        ("export default () => {}", &[][..]),
        ("const x = 1;", &["1:1 no_default_export the module has no default export"]),
        ("", &["1:1 no_default_export"]),
        ("\n export const handler = () => {}", &["2:2 no_default_export"]),
        ("module.exports = () => {}", &["1:1 no_default_export"]),
        ("export default { run() {} }", &["1:16 no_default_export the default export is an object"]),
        ("export default class {}", &["1:16 no_default_export the default export is a class"]),
        ("const h = 5; export default h", &["1:29 no_default_export the default export is a number"]),
        ("let h = 5; h = () => {}; export default h", &[]),
        ("export default make(); function make() { return () => {} }", &[]),
        ("export { h as default }; class h {}", &["1:10 no_default_export"]),
        ("export default function* () {}", &["1:16 ?never_run the default export is a generator"]),
        ("const h = async function* () {}; export default h", &["1:49 ?never_run"]),
        ("import fs from 'node:fs';\nexport default () => fs", &["1:16 handler_load import of \"node:fs\" is not"]),
        ("export { default } from './x.js'", &["1:25 handler_load import of \"./x.js\""]),
        ("export * from './x.js'; export default () => 1", &["1:15 handler_load"]),
        ("export default async () => {\n  const x = await import('x');\n}", &["2:19 handler_load import() is not"]),
    ] {
        let found = found(source, Contract::Automation);
        let first = found.iter().zip(expected).all(|(a, b)| a.starts_with(b)) && found.len() >= expected.len();
        assert!(first && (found.is_empty() == expected.is_empty()), "{source}: {found:#?}");
    }
}

#[test]
fn syntax_errors_have_their_place_and_other_languages_their_name() {
    for (source, expected) in [
        ("export default async () => {\n  const ö = ;\n}", "2:13 handler_load SyntaxError: Unexpected token"),
        ("export default async () => {\n", "2:1 handler_load SyntaxError: Expected `}` but found `EOF`"),
        ("export default () => { await x }", "1:24 handler_load SyntaxError:"),
        ("const a = 1; const a = 2; export default () => a", "1:7 handler_load SyntaxError:"),
        ("export default () => /(/", "1:23 handler_load SyntaxError:"),
        ("export default () => 'x\n'", "1:22 handler_load SyntaxError:"),
        ("export default async ({ ctx }: Args) => {}", "1:30 handler_load this is TypeScript"),
        ("interface A { b: string }\nexport default () => 1 as A", "1:10 handler_load this is TypeScript"),
        ("export default () => <b>x</b>", "1:22 handler_load this is JSX"),
        ("export default (x: any) => <b>{x}</b>", "1:18 handler_load this is TypeScript with JSX"),
        ("return 5", "1:1 handler_load SyntaxError:"),
    ] {
        let found = found(source, Contract::Automation);
        assert!(found.first().is_some_and(|first| first.starts_with(expected)), "{source}\n{found:#?}");
    }
}

#[test]
fn names_that_are_declared_nowhere() {
    for (text, expected) in [
        ("return fetch('x')", &["2:8 ?absent_global `fetch` does not exist in a handler"][..]),
        ("if (typeof fetch === 'function') return fetch('x')", &[]),
        (
            "const fs = require('fs'); return process.env.X",
            &["2:12 ?absent_global `require`", "2:34 ?absent_global `process`"],
        ),
        ("return Deno.cwd() + globalThis.process", &["2:8 ?absent_global `Deno`", "2:32 ?absent_global `process`"]),
        ("globalThis.fetch2 = () => 1; return fetch2()", &[]),
        ("if (globalThis.fetch) return fetch('x'); return globalThis.process?.env", &[]),
        ("return 'Buffer' in globalThis ? Buffer.from('x') : null", &[]),
        ("return setTimeout(() => {}, 1), structuredClone({}), crypto.randomUUID, Intl, escape(''), undefined", &[]),
        ("return (function () { return arguments.length })()", &[]),
        ("const total = 1; return totla", &["2:25 ?absent_global `totla`"]),
        (
            "return eval('1') + new Function('return 1')()",
            &["2:8 ?absent_global a handler cannot", "2:20 ?absent_global"],
        ),
        ("const eval2 = (f) => f(); return eval2(() => 1)", &[]),
        ("x: for (;;) break x", &[]),
    ] {
        check(&body(text), Contract::Automation, expected);
    }
}

#[test]
fn what_differs_when_a_run_is_replayed() {
    for (text, expected) in [
        ("return Date.now()", &["2:8 ?differs_on_replay Date.now() gives something else"][..]),
        (
            "return [new Date(), Math.random(), crypto.randomUUID()]",
            &[
                "2:9 ?differs_on_replay new Date()",
                "2:21 ?differs_on_replay Math.random()",
                "2:36 ?differs_on_replay crypto.randomUUID()",
            ],
        ),
        ("return ctx.run.trigger.scheduledFor ?? Date.now()", &[]),
        ("const { scheduledFor } = ctx.run.trigger; return scheduledFor ?? Date.now()", &[]),
        ("return ctx.run?.trigger?.scheduledFor || Date.now()", &[]),
        ("return input.at ?? Date.now()", &["2:20 ?differs_on_replay"]),
        ("const began = Date.now(); await ctx.tool('a.b'); log.info(Date.now() - began)", &[]),
        ("const began = Date.now(); return began", &["2:15 ?differs_on_replay"]),
        ("const end = Date.now() + 5e3; while (Date.now() < end) await input", &[]),
        ("const end = Date.now() + 5e3; return end", &["2:13 ?differs_on_replay"]),
        ("return Date.now() - 86_400_000", &["2:8 ?differs_on_replay"]),
        ("if (Date.now() > input.until) return", &["2:5 ?differs_on_replay"]),
        ("const { scheduledFor = Date.now(), missed = Date.now() } = ctx.run.trigger", &["2:45 ?differs_on_replay"]),
        ("const { scheduledFor: at = Date.now() } = ctx.run.trigger", &[]),
        ("const at = ctx.run.trigger.scheduledFor; return at ?? Date.now()", &["2:55 ?differs_on_replay"]),
        ("await new Promise((done) => setTimeout(done, 50 * Math.random()))", &[]),
        ("return [Date(), crypto.getRandomValues(new Uint8Array(1))]", &["2:9 ?differs", "2:17 ?differs"]),
        ("log.info('x', { at: Date.now(), id: crypto.randomUUID() }); console.log(new Date().toISOString())", &[]),
        ("return new Date(input.at)", &[]),
        ("const Date = { now: () => 1 }; return Date.now()", &[]),
    ] {
        check(&body(text), Contract::Automation, expected);
    }
}

#[test]
fn names_of_tools_are_followed_to_where_they_are_written() {
    for (text, expected) in [
        ("const T = `a.b`; await ctx.tool(T)", &["a.b"][..]),
        ("await ctx.tool(input ? 'a.b' : 'c.d')", &["a.b", "c.d"]),
        ("await ctx.tool(input ?? 'a.b')", &["a.b"]),
        (
            "const call = (name, args) => ctx.tool(name, args); await call('a.b'); await call('c.d', {})",
            &["a.b", "c.d"],
        ),
        ("const call = (name) => ctx.tool(name); await call(input); [].map(call)", &[]),
        ("const call = (name) => ctx.tool(name); await call(...input, 'a.b')", &[]),
        ("const call = (name) => { name = 'x'; return ctx.tool(name) }; await call('a.b')", &[]),
        ("function f(n) { return f(n) + ctx.tool(n) } await f('a.b')", &["a.b"]),
        ("for (const name of ['a.b']) await ctx.tool(name)", &[]),
    ] {
        let study = study(&body(text), Contract::Automation);
        let names: Vec<&str> = study.tool_calls.iter().map(|call| call.name.as_str()).collect();
        assert_eq!(names, expected, "{text}");
    }
}

#[test]
fn calls_that_the_manifest_has_a_say_in_are_noted() {
    let text = body(
        "const app = 'shop';\nawait ctx.tool('centraid_read', { app, query: 'q' }); await ctx.agent({ prompt: '' })",
    );
    let study = study(&text, Contract::Automation);
    let call = ToolCall { name: "centraid_read".into(), app: Some("shop".into()), line: 3, column: 16 };
    assert_eq!(study, Study { is_module: true, tool_calls: vec![call], agent_at: Some((3, 61)), ..Study::default() });
}

#[test]
fn floods_are_told_briefly() {
    let study = study(&body(&"ctx.nope;".repeat(1000)), Contract::Automation);
    assert_eq!(study.problems.len(), 51);
    assert_eq!(study.problems[50].message, "the handler has 950 more problems");
    let long = study_of_length(100_000);
    assert!(long.problems[0].message.len() < 2_000);
}

/// Each takes a blink, and minutes if anything is looked for in everything.
#[test]
fn floods_are_read_in_passing() {
    let many = |text: &str, times: usize| text.repeat(times);
    let objects: String = (0..40_000).map(|n| format!("const o{n}={{}};")).collect();
    for text in [
        format!("const g = (n) => {{ {} }}; {}", many("ctx.tool(n);", 30_000), many("g(1);", 60_000)),
        format!("function f() {{ {} }} {objects}", many("this;", 60_000)),
        format!("let c; {} {}", many("c;", 150_000), many("c=ctx;", 60_000)),
        many("if(log.debug)log.debug('x');", 30_000),
        format!("const end = Date.now() + 1; {}", many("Date.now()<end;", 60_000)),
    ] {
        study(&body(&text), Contract::Automation);
    }
}

fn study_of_length(length: usize) -> Study {
    study(&body(&format!("ctx.{}", "x".repeat(length))), Contract::Automation)
}

#[test]
fn the_templates_and_examples_have_no_problems() {
    let mut count = 0;
    for (folder, contract) in [
        ("src/cli/templates", Contract::Automation),
        ("fixtures/apps", Contract::Automation),
        ("fixtures/apps/bookshelf/queries", Contract::Query),
        ("fixtures/apps/bookshelf/actions", Contract::Action),
    ] {
        for entry in walkdir::WalkDir::new(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)) {
            let path = entry.unwrap().into_path();
            let is_tool = path.parent().is_some_and(|it| it.ends_with("queries") || it.ends_with("actions"));
            if path.extension().is_none_or(|it| it != "js") || is_tool != (contract != Contract::Automation) {
                continue;
            }
            let study = study(&std::fs::read_to_string(&path).unwrap(), contract);
            assert_eq!(study.problems, [], "{}", path.display());
            count += 1;
        }
    }
    assert!(count >= 15, "{count}");
}

/// Cut anywhere: problems, and never a panic.
#[test]
fn any_text_comes_to_an_end() {
    let source = include_str!("../cli/templates/tools.js");
    for at in (0..source.len()).filter(|at| source.is_char_boundary(*at)) {
        study(&source[..at], Contract::Automation);
    }
    for source in
        ["`${", "/*", "'", "`", "/[", "\\", "}}}`", "ctx.", "ctx?.", "💥ctx.💥", "\u{feff}export default 1", "#!x"]
    {
        assert!(!study(source, Contract::Automation).problems.is_empty(), "{source}");
    }
}
