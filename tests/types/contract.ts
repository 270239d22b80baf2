// What the types of the handler contract allow, and what they refuse: an expected error that does not come is one.
import type {
  Action, CallError, Ctx, FailureInput, Handler, HandlerArgs, Json, Query, RunRow, RunStatus, Statement,
} from '../../runtime-js/ctx';

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
const same = <A, B>(_: Equal<A, B>) => {};

export const whole: Handler<{ title: string }, { n: number }> = async ({ ctx, log, input }) => {
  same<typeof input, { title: string }>(true);
  same<typeof ctx.input, { title: string }>(true);

  const sent = await ctx.tool<{ id: number }>('mail.send', { to: input.title });
  same<typeof sent, { id: number }>(true);
  const read = await ctx.tool('centraid_read', { app: 'shop', query: 'items', input: { limit: 5 } });
  same<typeof read, any>(true);
  const { status = 200, body } = await ctx.tool('centraid_write', { action: 'add', input: {} });
  same<typeof status, number>(true);
  same<typeof body, any>(true);
  await ctx.tool('centraid_describe');
  for (const name of ['mail.send', 'mail.list']) await ctx.tool(name, {});
  // @ts-expect-error arguments are an object
  await ctx.tool('mail.send', 'x');

  const text = await ctx.agent({ prompt: 'x' });
  same<typeof text, string>(true);
  const shaped = await ctx.agent<{ a: 1 }>({ prompt: 'x', json: { type: 'object' } });
  same<typeof shaped, { a: 1 }>(true);
  // @ts-expect-error a prompt is needed
  await ctx.agent({});

  const { output, childRunId } = await ctx.invoke<{ done: boolean }>('a/b', { input: 1 });
  same<typeof output, { done: boolean }>(true);
  same<typeof childRunId, string>(true);

  const kept = await ctx.state.get<number>('k');
  same<typeof kept, number | undefined>(true);
  await ctx.state.set('k', { any: 'json' });
  await ctx.state.delete('k');
  await ctx.state.del('k');
  // @ts-expect-error it is called set
  await ctx.state.put('k', 1);

  const last = await ctx.runs.last({ status: 'ok', since: '2026-01-01', automationId: 'x' });
  same<typeof last, RunRow | undefined>(true);
  const rows = await ctx.runs.list({ limit: 5, since: 0 });
  same<(typeof rows)[number]['status'], RunStatus>(true);
  // @ts-expect-error no such status
  await ctx.runs.list({ status: 'failed' });

  same<typeof ctx.run.id, string>(true);
  same<typeof ctx.run.attempt, number>(true);
  same<typeof ctx.run.appId, string>(true);
  same<typeof ctx.run.automationId, string>(true);
  same<typeof ctx.run.trigger.scheduledFor, number | undefined>(true);
  same<typeof ctx.run.trigger.missed, number | undefined>(true);
  same<typeof ctx.run.trigger.deliveryId, string | undefined>(true);
  if (ctx.run.trigger.origin === 'cron') log.info('cron', { at: ctx.run.trigger.scheduledFor });
  // @ts-expect-error frozen
  ctx.run.id = 'x';
  // @ts-expect-error read-only
  ctx.state = ctx.state;
  // @ts-expect-error no such member
  ctx.fetch;
  // @ts-expect-error no such level
  log.debug('x');
  ctx.log.warn('x');
  ctx.log.error(new Error('x'), { a: 1 });
  same<typeof ctx.abortSignal, AbortSignal>(true);

  try {
    await ctx.tool('a.b');
  } catch (thrown) {
    const error = thrown as CallError;
    same<typeof error.code, string>(true);
    same<typeof error.path, string | undefined>(true);
    same<typeof error.message, string>(true);
  }
  return { summary: 'x', output: { n: 1 } };
};

export const nothing: Handler = () => {};
export const onlySummary: Handler = async () => ({ summary: 'x' });
// @ts-expect-error a summary is text
export const badSummary: Handler = () => ({ summary: 5 });
// @ts-expect-error the output is of another type
export const badOutput: Handler<any, { n: number }> = () => ({ output: { n: 'x' } });
// @ts-expect-error an automation has no database
export const noDatabase: Handler = ({ db }) => {};

export const onFailure: Handler<FailureInput> = ({ input: { failedRun }, log }) => {
  log.warn(`${failedRun.appId}/${failedRun.automationId}: ${failedRun.errorCode}`, failedRun.input);
};

export const query: Query<{ id: number }, { title: string }[]> = async ({ db, log, app, input, query }, second) => {
  same<typeof input, { id: number }>(true);
  same<typeof query, { id: number }>(true);
  same<typeof second, { id: number }>(true);
  log.info(app);
  const statement: Statement = db.prepare('select title from t where id = ?');
  const one = await statement.get<{ title: string }>(input.id);
  same<typeof one, { title: string } | undefined>(true);
  return statement.all<{ title: string }>({ id: 1 });
};

export const action: Action<{ title: string }> = async ({ db, body, input, app, log }) => {
  same<typeof body, typeof input>(true);
  log.info(app);
  await db.exec('create table t (title)');
  const { changes, lastInsertRowid } = await db.prepare('insert into t values (?)').run(body.title);
  same<typeof changes, number>(true);
  const id = await db.transaction(async (tx) => {
    await tx.exec('delete from t');
    // @ts-expect-error not within another
    tx.transaction;
    return lastInsertRowid;
  });
  return { status: 201, body: { id } };
};
// @ts-expect-error an action answers with a body
export const noBody: Action = () => ({ status: 200 });

const value: Json = { a: [1, 'x', null, { b: true }] };
export const helper = (ctx: Ctx, args: HandlerArgs) => [ctx.run.id, args.ctx.run.id, value];
