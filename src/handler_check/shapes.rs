//! The contract as a table: what a handler is given, and what each of it can do. `runtime-js/` is the truth; the tests
//! compare the two.

use super::Contract;

/// An object of the contract.
#[derive(Debug)]
pub struct Shape {
    pub name: &'static str,
    /// The code of problems about members that are not there.
    pub code: &'static str,
    /// Reading an unknown member throws; of others it is `undefined`.
    pub is_closed: bool,
    /// Whoever asks if it has a member means that, as one asks a log for `debug`.
    pub may_be_tested: bool,
    pub members: &'static [(&'static str, Value)],
}

/// A function of the contract.
#[derive(Debug)]
pub struct Function {
    pub name: &'static str,
    pub kind: Kind,
    pub result: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Tool,
    Agent,
    /// Its first argument is a function that is given a `tx`.
    Transaction,
    Plain,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A promise of something; when nobody awaits it, it is cancelled as soon as the handler settles.
    Cancelled,
    /// A promise of something that is carried through whether it is awaited or not.
    Kept,
    Statement,
    Nothing,
}

#[derive(Debug, Clone, Copy)]
pub enum Value {
    Object(&'static Shape),
    Function(&'static Function),
    /// What calling the function gives.
    Promise(&'static Function),
    /// There, and of no known shape.
    Other,
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Object(a), Self::Object(b)) => std::ptr::eq(*a, *b),
            (Self::Function(a), Self::Function(b)) | (Self::Promise(a), Self::Promise(b)) => std::ptr::eq(*a, *b),
            (Self::Other, Self::Other) => true,
            _ => false,
        }
    }
}

impl Shape {
    pub fn member(&self, name: &str) -> Option<Value> {
        self.members.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }

    pub fn names(&self) -> Vec<&'static str> {
        self.members.iter().map(|(name, _)| *name).collect()
    }
}

impl Function {
    pub fn result(&'static self) -> Option<Value> {
        match self.result {
            Outcome::Cancelled | Outcome::Kept => Some(Value::Promise(self)),
            Outcome::Statement => Some(Value::Object(&STATEMENT)),
            Outcome::Nothing => None,
        }
    }
}

/// The first argument of the default export.
pub fn arguments(contract: Contract) -> &'static Shape {
    match contract {
        Contract::Automation => &AUTOMATION,
        Contract::Query => &QUERY,
        Contract::Action => &ACTION,
    }
}

/// Every shape that a handler of this contract can reach, by name, with its members in order.
pub fn members(contract: Contract) -> Vec<(&'static str, Vec<&'static str>)> {
    let mut found: Vec<(&'static str, Vec<&'static str>)> = Vec::new();
    let mut to_visit = vec![arguments(contract)];
    while let Some(shape) = to_visit.pop() {
        if found.iter().any(|(name, _)| *name == shape.name) {
            continue;
        }
        found.push((shape.name, shape.names()));
        for (_, value) in shape.members {
            match value {
                Value::Object(shape) => to_visit.push(shape),
                Value::Function(Function { kind: Kind::Transaction, .. }) => to_visit.push(&TX),
                Value::Function(Function { result: Outcome::Statement, .. }) => to_visit.push(&STATEMENT),
                Value::Function(_) | Value::Promise(_) | Value::Other => {}
            }
        }
    }
    found
}

/// What every object answers to, and what promises, serialisers and printers ask for: never a mistake.
pub const ANY_OBJECT: &[&str] = &[
    "__defineGetter__",
    "__defineSetter__",
    "__lookupGetter__",
    "__lookupSetter__",
    "constructor",
    "hasOwnProperty",
    "isPrototypeOf",
    "propertyIsEnumerable",
    "toLocaleString",
    "toString",
    "valueOf",
    "then",
    "toJSON",
    "asymmetricMatch",
    "nodeType",
    "$$typeof",
];

pub const PROMISE_MEMBERS: &[&str] = &["then", "catch", "finally"];

pub const UNKNOWN_ARGUMENT: &str = "unknown_argument";
const CTX_MEMBER: &str = "unknown_ctx_member";
const LOG_MEMBER: &str = "unknown_log_member";
const DB_MEMBER: &str = "unknown_db_member";

static AUTOMATION: Shape = Shape {
    name: "an automation's argument",
    code: UNKNOWN_ARGUMENT,
    is_closed: false,
    may_be_tested: false,
    members: &[("ctx", Value::Object(&CTX)), ("log", Value::Object(&LOG)), ("input", Value::Other)],
};

static QUERY: Shape = Shape {
    name: "a query's argument",
    code: UNKNOWN_ARGUMENT,
    is_closed: false,
    may_be_tested: false,
    members: &[
        ("db", Value::Object(&DB)),
        ("log", Value::Object(&LOG)),
        ("app", Value::Other),
        ("input", Value::Other),
        ("query", Value::Other),
    ],
};

static ACTION: Shape = Shape {
    name: "an action's argument",
    code: UNKNOWN_ARGUMENT,
    is_closed: false,
    may_be_tested: false,
    members: &[
        ("db", Value::Object(&DB)),
        ("log", Value::Object(&LOG)),
        ("app", Value::Other),
        ("body", Value::Other),
        ("input", Value::Other),
    ],
};

static CTX: Shape = Shape {
    name: "ctx",
    code: CTX_MEMBER,
    is_closed: true,
    may_be_tested: false,
    members: &[
        ("tool", function(&TOOL)),
        ("agent", function(&AGENT)),
        ("state", Value::Object(&STATE)),
        ("runs", Value::Object(&RUNS)),
        ("invoke", function(&INVOKE)),
        ("run", Value::Object(&RUN)),
        ("input", Value::Other),
        ("abortSignal", Value::Other),
        ("log", Value::Object(&LOG)),
    ],
};

static STATE: Shape = Shape {
    name: "ctx.state",
    code: CTX_MEMBER,
    is_closed: true,
    may_be_tested: false,
    members: &[
        ("get", function(&STATE_GET)),
        ("set", function(&STATE_SET)),
        ("delete", function(&STATE_DELETE)),
        ("del", function(&STATE_DEL)),
    ],
};

static RUNS: Shape = Shape {
    name: "ctx.runs",
    code: CTX_MEMBER,
    is_closed: true,
    may_be_tested: false,
    members: &[("last", function(&RUNS_LAST)), ("list", function(&RUNS_LIST))],
};

static RUN: Shape = Shape {
    name: "ctx.run",
    code: CTX_MEMBER,
    is_closed: false,
    may_be_tested: false,
    members: &[
        ("id", Value::Other),
        ("automationId", Value::Other),
        ("appId", Value::Other),
        ("attempt", Value::Other),
        ("trigger", Value::Object(&TRIGGER)),
    ],
};

static TRIGGER: Shape = Shape {
    name: "ctx.run.trigger",
    code: CTX_MEMBER,
    is_closed: false,
    may_be_tested: false,
    members: &[
        ("origin", Value::Other),
        ("scheduledFor", Value::Other),
        ("missed", Value::Other),
        ("deliveryId", Value::Other),
    ],
};

static LOG: Shape = Shape {
    name: "log",
    code: LOG_MEMBER,
    is_closed: false,
    may_be_tested: true,
    members: &[("info", function(&LOG_INFO)), ("warn", function(&LOG_WARN)), ("error", function(&LOG_ERROR))],
};

static DB: Shape = Shape {
    name: "db",
    code: DB_MEMBER,
    is_closed: true,
    may_be_tested: false,
    members: &[("prepare", function(&PREPARE)), ("exec", function(&EXEC)), ("transaction", function(&TRANSACTION))],
};

pub static TX: Shape = Shape {
    name: "tx",
    code: DB_MEMBER,
    is_closed: true,
    may_be_tested: false,
    // It refuses a transaction within one, in words of its own.
    members: &[("prepare", function(&PREPARE)), ("exec", function(&EXEC)), ("transaction", Value::Other)],
};

static STATEMENT: Shape = Shape {
    name: "db.prepare()",
    code: DB_MEMBER,
    is_closed: true,
    may_be_tested: false,
    members: &[("get", function(&GET)), ("all", function(&ALL)), ("run", function(&RUN_SQL))],
};

const fn function(function: &'static Function) -> Value {
    Value::Function(function)
}

const fn call(name: &'static str, kind: Kind, result: Outcome) -> Function {
    Function { name, kind, result }
}

static TOOL: Function = call("ctx.tool", Kind::Tool, Outcome::Cancelled);
static AGENT: Function = call("ctx.agent", Kind::Agent, Outcome::Cancelled);
static INVOKE: Function = call("ctx.invoke", Kind::Plain, Outcome::Cancelled);
static STATE_GET: Function = call("ctx.state.get", Kind::Plain, Outcome::Cancelled);
static STATE_SET: Function = call("ctx.state.set", Kind::Plain, Outcome::Cancelled);
static STATE_DELETE: Function = call("ctx.state.delete", Kind::Plain, Outcome::Cancelled);
static STATE_DEL: Function = call("ctx.state.del", Kind::Plain, Outcome::Cancelled);
static RUNS_LAST: Function = call("ctx.runs.last", Kind::Plain, Outcome::Cancelled);
static RUNS_LIST: Function = call("ctx.runs.list", Kind::Plain, Outcome::Cancelled);
static LOG_INFO: Function = call("log.info", Kind::Plain, Outcome::Nothing);
static LOG_WARN: Function = call("log.warn", Kind::Plain, Outcome::Nothing);
static LOG_ERROR: Function = call("log.error", Kind::Plain, Outcome::Nothing);
static PREPARE: Function = call("db.prepare", Kind::Plain, Outcome::Statement);
static EXEC: Function = call("db.exec", Kind::Plain, Outcome::Kept);
static TRANSACTION: Function = call("db.transaction", Kind::Transaction, Outcome::Kept);
static GET: Function = call("get", Kind::Plain, Outcome::Kept);
static ALL: Function = call("all", Kind::Plain, Outcome::Kept);
static RUN_SQL: Function = call("run", Kind::Plain, Outcome::Kept);

/// Members that people expect, and what to write instead: owner, name, hint.
const EXPECTED: &[(&str, &str, &str)] = &[
    ("ctx", "fetch", NO_NETWORK),
    ("ctx", "http", NO_NETWORK),
    ("ctx", "request", NO_NETWORK),
    ("ctx", "db", "data is reached through tools: ctx.tool('centraid_read', { app, query, input })"),
    ("ctx", "read", "write ctx.tool('centraid_read', { app, query, input })"),
    ("ctx", "write", "write ctx.tool('centraid_write', { app, action, input })"),
    ("ctx", "model", "write ctx.agent({ prompt })"),
    ("ctx", "llm", "write ctx.agent({ prompt })"),
    ("ctx", "call", "write ctx.tool(name, args)"),
    ("ctx", "sleep", "write await new Promise((done) => setTimeout(done, ms))"),
    ("ctx", "env", "there is no environment; give values by input or keep them in ctx.state"),
    ("ctx", "secrets", "secrets stay with the MCP server that needs them"),
    ("ctx", "trigger", "did you mean `ctx.run.trigger`?"),
    ("ctx", "appId", "did you mean `ctx.run.appId`?"),
    ("ctx", "runId", "did you mean `ctx.run.id`?"),
    ("ctx.run", "runId", "did you mean `ctx.run.id`?"),
    ("ctx.run", "app", "did you mean `ctx.run.appId`?"),
    ("ctx.run.trigger", "kind", "did you mean `ctx.run.trigger.origin`?"),
    ("ctx.run.trigger", "type", "did you mean `ctx.run.trigger.origin`?"),
    ("ctx.state", "put", "did you mean `ctx.state.set`?"),
    ("ctx.state", "remove", "did you mean `ctx.state.delete`?"),
    ("ctx.state", "has", "`ctx.state.get(key)` resolves to undefined when the key is not there"),
    ("log", "debug", "did you mean `log.info`?"),
    ("log", "log", "did you mean `log.info`?"),
    ("log", "trace", "did you mean `log.info`?"),
    ("db", "query", "write db.prepare(sql).all(...params)"),
    ("db", "run", "write db.prepare(sql).run(...params)"),
    ("db", "get", "write db.prepare(sql).get(...params)"),
    ("db", "all", "write db.prepare(sql).all(...params)"),
];

pub const NO_NETWORK: &str =
    "a handler has no network: call a tool of an MCP server, ctx.tool('<server>.<tool>', { … })";

/// What to write instead of a member that is not there.
pub fn hint(shape: &Shape, name: &str) -> String {
    if let Some((_, _, hint)) = EXPECTED.iter().find(|(owner, expected, _)| *owner == shape.name && *expected == name) {
        return (*hint).to_owned();
    }
    if shape.code == UNKNOWN_ARGUMENT
        && let Some((owner, _)) = shape.members.iter().find(|(_, value)| match value {
            Value::Object(shape) => shape.member(name).is_some(),
            _ => false,
        })
    {
        return format!("did you mean `{owner}.{name}`? Take `{owner}` out of the argument: ({{ {owner} }}) => …");
    }
    let known = shape.names();
    match crate::core::near_name::nearest(name, &known) {
        Some(near) if shape.code == UNKNOWN_ARGUMENT => format!("did you mean `{near}`?"),
        Some(near) => format!("did you mean `{}.{near}`?", shape.name),
        None => format!("{} has: {}", shape.name, known.join(", ")),
    }
}
