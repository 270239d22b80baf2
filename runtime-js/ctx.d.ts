/**
 * What an automation's `handler.js` is given, and what it may return.
 *
 * ```js
 * // @ts-check, and in a doc comment before the export: @type {import('./ctx').Handler}
 * export default async ({ ctx, log, input }) => {
 *   const issue = await ctx.tool('github.create_issue', { title: input.title });
 *   return { summary: `opened #${issue.number}`, output: { number: issue.number } };
 * };
 * ```
 *
 * A handler is one ES module without imports. Beside the language and `Intl` it has `console`, timers,
 * `queueMicrotask`, `URL`, `URLSearchParams`, `TextEncoder`, `TextDecoder`, `structuredClone`, `atob`, `btoa`,
 * `AbortController`, `AbortSignal`, `Event`, `EventTarget`, `DOMException`, `crypto.randomUUID` and
 * `crypto.getRandomValues`. It has no network, no files, no environment, no `eval` and no WebAssembly: everything it
 * does to the world goes through `ctx`.
 */

/** What JSON can hold; whatever crosses nests at most 100 levels of arrays and objects. */
export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

/** A JSON object. */
export type JsonObject = { [key: string]: Json };

/** The default export of `handler.js`. */
export type Handler<Input = any, Output = any> = (
  args: HandlerArgs<Input>,
) => HandlerResult<Output> | void | Promise<HandlerResult<Output> | void>;

export interface HandlerArgs<Input = any> {
  ctx: Ctx<Input>;
  log: Log;
  /**
   * The trigger's payload. Webhook: the body as JSON, else as a string, else `undefined` when empty. Run now and
   * `ctx.invoke`: what was given. Cron: `undefined`.
   */
  input: Input;
}

/** Both are optional, and so is the whole: a handler that returns nothing has done well, too. */
export interface HandlerResult<Output = any> {
  /** One line for the run list; cut at 4 KiB. */
  summary?: string;
  /** JSON, at most 1 MiB and 100 levels deep; checked against the manifest's `outputSchema`. */
  output?: Output;
}

/** Frozen. Reading a member that is not listed here throws. */
export interface Ctx<Input = any> {
  /**
   * Runs a query of an app: `queries/<query>.js`. Resolves to what it returns.
   *
   * @throws {CallError} `UNKNOWN_APP`, `UNKNOWN_QUERY`, `INVALID_INPUT`, `HANDLER_ERROR`, `tool_not_allowed`, …
   */
  tool<Result = any>(name: 'centraid_read', args: ReadArgs): Promise<Result>;
  /**
   * Runs an action of an app: `actions/<action>.js`. Resolves to what it returns: its `body`, and its `status` when it
   * gives one.
   *
   * @throws {CallError} `UNKNOWN_APP`, `UNKNOWN_ACTION`, `INVALID_INPUT`, `HANDLER_ERROR`, `tool_not_allowed`, …
   */
  tool<Result = ActionResult>(name: 'centraid_write', args: WriteArgs): Promise<Result>;
  /** What apps offer, with schemas; without `app`, a summary of all apps that this automation may reach. */
  tool<Result = any>(name: 'centraid_describe', args?: DescribeArgs): Promise<Result>;
  /**
   * Calls one tool and resolves to its result.
   *
   * Calls made in one tick run concurrently: `await Promise.all([ctx.tool(…), ctx.tool(…)])`. Nothing is retried for
   * you: use `try`/`catch`. Await each call, as all of `ctx`: one that is pending when the handler settles is
   * cancelled.
   *
   * @param name `<server>.<tool>` of an MCP server that the manifest's `requires` allows.
   * @param args A JSON object; leaving it out is `{}`.
   * @throws {CallError} The tool's own error, `tool_not_allowed`, an unknown tool, …
   */
  tool<Result = any>(name: string, args?: object): Promise<Result>;

  /**
   * One turn of the model that the manifest's `requires.model` names, without tools.
   *
   * @throws {CallError} No model set, no key, the provider is down, or no answer that fits the schema.
   */
  agent(request: { prompt: string; json?: undefined }): Promise<string>;
  /** With a JSON Schema: resolves to a value that validates against it. */
  agent<Result = any>(request: { prompt: string; json: object }): Promise<Result>;

  /** Key-value store of this automation; lasts across runs. */
  readonly state: State;

  /** Earlier runs. */
  readonly runs: Runs;

  /**
   * Runs another automation to its end.
   *
   * @param handle `<appId>/<automationId>`, or `<automationId>` in the same app.
   * @throws {CallError} The child failed, the chain is too deep, or it would be a cycle.
   */
  invoke<Output = any>(handle: string, options?: { input?: any }): Promise<InvokeResult<Output>>;

  /** Which run this is, and what set it off. */
  readonly run: Run;

  /** The same as the handler's `input`. */
  readonly input: Input;

  /** Aborted when the run is cancelled or out of time; the handler may then clean up for a quarter of a second. */
  readonly abortSignal: Signal;

  /** The same as the handler's `log`. */
  readonly log: Log;
}

/** `AbortSignal` where the editor knows it, as it does with the DOM's types, else as much of it as there is. */
export type Signal = typeof globalThis extends { AbortSignal: { prototype: infer Known } } ? Known : RunSignal;

interface RunSignal {
  readonly aborted: boolean;
  readonly reason: any;
  onabort: ((event: any) => any) | null;
  throwIfAborted(): void;
  addEventListener(type: 'abort', listener: (event: any) => any, options?: { once?: boolean }): void;
  removeEventListener(type: 'abort', listener: (event: any) => any): void;
}

export interface ReadArgs {
  /** An app's id; the automation's own app when left out. Others stand in the manifest's `apps`. */
  app?: string;
  query: string;
  /** Validated against the query's schema. */
  input?: object;
}

export interface WriteArgs {
  /** An app's id; the automation's own app when left out. Others stand in the manifest's `apps`. */
  app?: string;
  action: string;
  /** Validated against the action's schema. */
  input?: object;
}

export interface DescribeArgs {
  app?: string;
  query?: string;
  action?: string;
}

export interface Log {
  /** @param fields Anything that JSON can hold. */
  info(message: unknown, fields?: unknown): void;
  warn(message: unknown, fields?: unknown): void;
  error(message: unknown, fields?: unknown): void;
}

/** Keys and values together are limited: 1 MiB per key, 64 MiB per automation. */
export interface State {
  /** `undefined` when the key is not there. */
  get<Value = any>(key: string): Promise<Value | undefined>;
  /** Stores JSON; `undefined` is stored as `null`. */
  set(key: string, value: unknown): Promise<void>;
  delete(key: string): Promise<void>;
  /** The same as `delete`. */
  del(key: string): Promise<void>;
}

export interface Runs {
  /** The newest run that fits, without the current one; `undefined` when there is none. */
  last(filter?: RunFilter): Promise<RunRow | undefined>;
  /** Newest first, without the current one. */
  list(filter?: RunFilter): Promise<RunRow[]>;
}

export type RunStatus = 'queued' | 'running' | 'ok' | 'error' | 'cancelled' | 'skipped';

export interface RunFilter {
  /** Of this app; this automation by default. */
  automationId?: string;
  status?: RunStatus;
  /** Epoch milliseconds, or an ISO date: runs that started since then. */
  since?: number | string;
  /** 50 by default. */
  limit?: number;
}

export interface RunRow {
  runId: string;
  automationId: string;
  status: RunStatus;
  /** Epoch milliseconds. */
  startedAt: number | null;
  endedAt: number | null;
  summary: string | null;
  output: any;
}

export interface InvokeResult<Output = any> {
  output: Output;
  childRunId: string;
}

export interface Run {
  readonly id: string;
  readonly automationId: string;
  readonly appId: string;
  /** 1 for the first try, then one more for each retry. */
  readonly attempt: number;
  readonly trigger: Trigger;
}

/** Only what applies is there. */
export interface Trigger {
  readonly origin: 'cron' | 'webhook' | 'manual' | 'invoke' | 'failure' | 'retry';
  /** Epoch milliseconds of the instant that a cron trigger stood for. */
  readonly scheduledFor?: number;
  /** How many earlier instants this run stands for. */
  readonly missed?: number;
  /** The delivery id that a webhook came with. */
  readonly deliveryId?: string;
}

/** The `input` of an automation that another one names as `onFailure`. */
export interface FailureInput {
  failedRun: FailedRun;
}

export interface FailedRun {
  runId: string;
  automationId: string;
  appId: string;
  /** The message; the stack follows on further lines. */
  error: string | null;
  /** Such as `handler_threw`, `timeout` or `output_schema`. */
  errorCode: string | null;
  triggerOrigin: Trigger['origin'];
  /** Epoch milliseconds. */
  startedAt: number | null;
  endedAt: number | null;
  /** What the failed run was given. */
  input: any;
}

/** What a rejected `ctx` or `db` call is. */
export interface CallError extends Error {
  /** Stable, such as `tool_not_allowed`, `too_deep` or `INVALID_INPUT`. */
  code: string;
  /** The part of the arguments that was wrong, when the tool says so. */
  path?: string;
}

/** The default export of an app's `queries/<name>.js`. The database is read-only. */
export type Query<Input = any, Result = any> = (args: QueryArgs<Input>, input: Input) => Result | Promise<Result>;

export interface QueryArgs<Input = any> {
  db: Database;
  log: Log;
  /** The app's id. */
  app: string;
  /** Validated against the query's schema. */
  input: Input;
  /** The same as `input`. */
  query: Input;
}

/** The default export of an app's `actions/<name>.js`. */
export type Action<Input = any> = (
  args: ActionArgs<Input>,
  input: Input,
) => ActionResult | Promise<ActionResult>;

export interface ActionArgs<Input = any> {
  db: Database;
  log: Log;
  /** The app's id. */
  app: string;
  /** Validated against the action's schema. */
  body: Input;
  /** The same as `body`. */
  input: Input;
}

export interface ActionResult {
  status?: number;
  body: any;
}

/**
 * The app's own `data.sqlite`. Await each call, so that you see its result and its error. What you did not await is
 * carried through all the same before a handler that returned well has ended; when it fails, so does the handler. A
 * handler that throws loses what was not awaited by then.
 */
export interface Database extends Queryable {
  /**
   * Runs `work` in one transaction and resolves to its result. When `work` throws, everything is rolled back and the
   * error goes on. Inside, use `tx`; a transaction within a transaction is refused.
   */
  transaction<Result>(work: (tx: Queryable) => Result | Promise<Result>): Promise<Result>;
}

export interface Queryable {
  prepare(sql: string): Statement;
  /** One or more statements without parameters. */
  exec(sql: string): Promise<void>;
}

/** Parameters are positional, or one object for named ones. */
export interface Statement {
  /** The first row, or `undefined`. */
  get<Row = any>(...params: any[]): Promise<Row | undefined>;
  all<Row = any>(...params: any[]): Promise<Row[]>;
  run(...params: any[]): Promise<Changes>;
}

/** What a statement did. */
export interface Changes {
  changes: number;
  lastInsertRowid: number;
}
