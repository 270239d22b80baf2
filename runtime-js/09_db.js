// `db`: what a query or an action of an app has instead of `ctx`. An async proxy of the app's own `data.sqlite`; the
// daemon holds the connection.
(function (rt) {
  'use strict';
  const p = rt.p;
  const { call, callThen } = rt.ops;

  const refuse = (message) => p.PromiseReject(new p.TypeError(message));

  /** One plain object is named parameters; one array, or any other arguments, are positional. */
  const paramsText = (args) => {
    if (args.length === 0) return undefined;
    const first = args[0];
    const isGroup = args.length === 1 && typeof first === 'object' && first !== null;
    return p.JSONStringify(isGroup ? first : args);
  };

  /** `scope` is `{tx, open}`: the transaction that statements belong to, and whether it still stands. */
  const database = (name, scope, extra) => {
    const send = (op, sql, args) => {
      if (!scope.open) return refuse(`${name}: the transaction is over`);
      try {
        return call('db', op, sql, paramsText(args), scope.tx);
      } catch (error) {
        return p.PromiseReject(error);
      }
    };
    const members = {
      __proto__: null,
      prepare: (sql) => {
        if (typeof sql !== 'string') throw new p.TypeError(`${name}.prepare(sql): sql must be a string`);
        return rt.closed(`${name}.prepare()`, {
          __proto__: null,
          get: (...args) => send('get', sql, args),
          all: (...args) => send('all', sql, args),
          run: (...args) => send('run', sql, args),
        });
      },
      exec: (sql) =>
        typeof sql === 'string' ? send('exec', sql, []) : refuse(`${name}.exec(sql): sql must be a string`),
      transaction: extra,
    };
    return rt.closed(name, members);
  };

  const nested = () => refuse('tx.transaction: a transaction inside a transaction is not possible');

  /** How many were asked for; each is known to the daemon by its number. */
  let transactions = 0;

  const transaction = (work) => {
    if (typeof work !== 'function') return refuse('db.transaction(work): work must be a function');
    return new p.Promise((resolve, reject) => {
      const scope = { __proto__: null, tx: p.String(++transactions), open: true };
      const begun = () => {
        const ended = (op, then) => {
          scope.open = false;
          callThen(then, reject, 'db', op, undefined, undefined, scope.tx);
        };
        // An async function of ours turns whatever `work` gives, or throws, into one settled promise.
        const attempt = async () => work(database('tx', scope, nested));
        const attempted = attempt();
        // Without this, `then` asks the handler's realm which class of promise it should make.
        p.define(attempted, 'constructor', undefined);
        p.PromiseThen(
          attempted,
          (value) => ended('commit', () => resolve(value)),
          (error) => {
            scope.open = false;
            const failed = () => reject(error);
            callThen(failed, failed, 'db', 'rollback', undefined, undefined, scope.tx);
          },
        );
      };
      callThen(begun, reject, 'db', 'begin', undefined, undefined, scope.tx);
    });
  };

  const main = () => database('db', { __proto__: null, tx: undefined, open: true }, transaction);

  rt.entry.query = (app, name, inputJson) => {
    const input = rt.parsed(inputJson);
    return [{ db: main(), log: rt.log, app, input, query: input }, input];
  };
  rt.entry.action = (app, name, inputJson) => {
    const input = rt.parsed(inputJson);
    return [{ db: main(), log: rt.log, app, body: input, input }, input];
  };
})
