// An MCP server that does what it should not, one misdeed per tool. Plain node, no packages.
//
// WITNESS_PORT: a port that it keeps a connection to for as long as it lives, so that a test sees its end.
// STARTS_FILE: gets a line for each start.
// GRANDCHILD: also starts a process that does the same, and that neither a signal nor the end of its input moves;
// GRANDCHILD=detached: in a group and session of its own.
// START=silent never answers; START=die ends at once; START=refuse knows no greeting; START=modern only the newest;
// START=version and START=shape greet wrongly.
// LIST=endless, LIST=huge, LIST=odd: lists of tools; LIST=late does not answer the first time, and tells the witness.
import { spawn } from 'node:child_process';
import { appendFileSync, closeSync } from 'node:fs';
import { connect } from 'node:net';
import { createInterface } from 'node:readline';

const { WITNESS_PORT, STARTS_FILE, GRANDCHILD, START, LIST } = process.env;
if (STARTS_FILE) appendFileSync(STARTS_FILE, `${process.pid}\n`);
const tellWitness = () => connect(Number(WITNESS_PORT), '127.0.0.1').on('error', () => {}).write(`${process.pid}\n`);
if (WITNESS_PORT) tellWitness();
if (process.argv[2] === 'grandchild') {
  process.on('SIGTERM', () => {});
  setInterval(() => {}, 1000);
} else {
  const detached = GRANDCHILD === 'detached';
  if (GRANDCHILD) spawn(process.execPath, [process.argv[1], 'grandchild'], { stdio: 'ignore', detached });
  if (START === 'die') {
    console.error(`no database at ${process.env.SECRET_URL}`);
    process.exit(3);
  }
  serve();
}

function serve() {
  const write = (message) => process.stdout.write(`${JSON.stringify({ jsonrpc: '2.0', ...message })}\n`);
  const text = (text, more) => ({ content: [{ type: 'text', text }], ...more });
  let calls = 0;
  const cancelled = [];
  let onCancel = () => {};
  const tools = {
    pid: () => text(String(process.pid)),
    calls: () => text(String(calls)),
    environment: () => text(JSON.stringify(process.env)),
    // Its secret in a text that is not JSON, in an error, and as a name.
    confess: ({ how }) =>
      how === 'error'
        ? text(`I know ${process.env.SECRET_URL}`, { isError: true })
        : { content: [], structuredContent: { [process.env.SECRET_URL]: `it is ${process.env.SECRET_URL}!` } },
    die: () => {
      console.error(`goodbye from ${process.env.SECRET_URL}`);
      process.exit(3);
    },
    garbage: (_, id) => {
      process.stdout.write('Listening on nothing\n\n{"half": \n[1, 2]\nnull\n\u0000\u0001\n');
      write({ id: 424242, result: text('to nobody') });
      write({ id: 'x', error: { code: 1, message: 'to nobody' } });
      write({ method: 'notifications/made_up', params: { a: 1 } });
      write({ id, result: text('after garbage') });
    },
    // 100 MB on one line, in pieces.
    huge: (_, id) => {
      const piece = 'x'.repeat(1024 * 1024);
      process.stdout.write('{"result":{"content":[{"type":"text","text":"');
      for (let i = 0; i < 100; i++) process.stdout.write(piece);
      process.stdout.write(`"}]},"jsonrpc":"2.0","id":${id}}\n`);
    },
    // As long, and of nobody knows which call.
    anonymous: () => {
      const piece = 'x'.repeat(1024 * 1024);
      for (let i = 0; i < 100; i++) process.stdout.write(piece);
      process.stdout.write('\n');
    },
    infinite: (_, id) => process.stdout.write(`{"jsonrpc":"2.0","id":${id},"result":{"content":[],"structuredContent":{"n":1e999}}}\n`),
    deep: () => text('['.repeat(110) + ']'.repeat(110)),
    shapeless: () => ({ nothing: 'known' }),
    refusal: (_, id) => write({ id, error: { code: -32603, message: `out of order: ${process.env.SECRET_URL}` } }),
    never: () => {},
    // Answers when somebody at that port says so.
    knock: ({ port }, id) => void connect(port, '127.0.0.1').once('data', () => write({ id, result: text('opened') })),
    // Closes its output and lives on.
    mute: () => {
      closeSync(1);
      setInterval(() => {}, 1000);
    },
    // Reads nothing any more.
    deaf: () => {
      process.stdin.pause();
      setInterval(() => {}, 1000);
    },
    'with.dots': () => text('dots'),
    imposter: (_, id) => {
      for (const other of [id - 1, id + 1, -1, 1.5, null, String(id) + 'x', Number.MAX_SAFE_INTEGER]) {
        write({ id: other, result: text('not yours') });
        write({ id: other, error: { code: -32000, message: 'not yours' } });
      }
      write({ id, result: text('mine') });
      write({ id, result: text('mine again') });
    },
    // Answers when an earlier call was cancelled.
    cancellation: (_, id) => {
      const answer = () => write({ id, result: text(`cancelled ${cancelled.length}`) });
      if (cancelled.length > 0) answer();
      else onCancel = answer;
    },
    stderr: () => {
      const line = 'e'.repeat(1000);
      for (let i = 0; i < 50_000; i++) console.error(line);
      process.stderr.write(`${'without an end '.repeat(100_000)}\n`);
      return text('said a lot');
    },
    notifications: (_, id, token) => {
      for (let i = 1; i <= 20_000; i++) {
        write({ method: 'notifications/progress', params: { progressToken: token, progress: i, message: 'p' } });
        write({ method: 'notifications/message', params: { level: 'info', data: { i } } });
        write({ method: 'notifications/tools/list_changed' });
      }
      write({ id, result: text('told a lot') });
    },
    tell: (_, id, token) => {
      write({ method: 'notifications/progress', params: { progressToken: token, progress: 1, total: 2, message: process.env.SECRET_URL } });
      write({ method: 'notifications/progress', params: { progressToken: 'not mine', progress: 1 } });
      write({ method: 'notifications/message', params: { level: 'warning', data: 'half done' } });
      write({ id, result: text('done') });
    },
    // Asks without ever reading an answer.
    ask: () => {
      process.stdin.pause();
      for (let i = 0; i < 20_000; i++) write({ id: `ask-${i}`, method: 'ping' });
    },
    grow: (_, id) => {
      tools.grown = () => text('I am new');
      write({ method: 'notifications/tools/list_changed' });
      write({ id, result: text('grown') });
    },
  };
  const described = (name) => ({ name, description: `misdeed ${name}`, inputSchema: { type: 'object' } });
  const list = () => Object.keys(tools).map(described);
  let listed = 0;
  const page = (cursor) => {
    const more = {
      endless: () => ({ tools: [described(`page-${listed}`)], nextCursor: `after ${cursor}` }),
      huge: () => ({ tools: Array.from({ length: 200_000 }, (_, i) => described(`tool-${i}`)) }),
      odd: () => ({ tools: ['pid', 'a b', '\u001b[31mred', 'x'.repeat(1_000_000), '', '\u0000'].map(described) }),
    };
    const { tools = [], nextCursor } = more[LIST]?.() ?? {};
    return { tools: cursor ? tools : [...list(), ...tools], nextCursor };
  };
  createInterface({ input: process.stdin })
    .on('line', (line) => {
      const { id, method, params } = JSON.parse(line);
      if (START === 'silent') return;
      if (method === 'initialize' && START === 'refuse') {
        write({ id, error: { code: -32000, message: `not today, ${process.env.SECRET_URL}` } });
      } else if (method === 'initialize' && START === 'modern') {
        write({ id, error: { code: -32601, message: 'Method not found' } });
      } else if (method === 'server/discover' && START === 'modern') {
        const serverInfo = { name: 'hostile', version: '1' };
        write({ id, result: { resultType: 'complete', supportedVersions: ['2026-07-28'], capabilities: { tools: {} }, serverInfo, ttlMs: 0, cacheScope: 'private' } });
      } else if (method === 'server/discover') {
        write({ id, error: { code: -32601, message: 'Method not found' } });
      } else if (method === 'initialize') {
        const protocolVersion = START === 'version' ? 'banana' : params.protocolVersion;
        if (START === 'shape') write({ id, result: { protocolVersion: 7 } });
        else write({ id, result: { protocolVersion, capabilities: { tools: { listChanged: true }, logging: {} }, serverInfo: { name: 'hostile', version: '1' } } });
      } else if (method === 'tools/list') {
        listed += 1;
        if (LIST === 'late' && listed === 1) tellWitness();
        else write({ id, result: page(params?.cursor) });
      } else if (method === 'notifications/cancelled') {
        cancelled.push(params.requestId);
        onCancel();
      } else if (method === 'tools/call') {
        calls += 1;
        const result = tools[params.name](params.arguments ?? {}, id, params._meta?.progressToken);
        if (result?.content || result?.nothing) write({ id, result });
      }
    })
    .on('close', () => process.exit(0));
}
