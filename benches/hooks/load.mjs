// Webhooks under load: nothing lost, nothing doubled, and how long it took. See README.md beside this file.
import { execFileSync, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import autocannon from 'autocannon';

const APPS = 10;
const SECRET = 'load-secret';
// A delivery is repeated after so many others: long after its row was written.
const REPEAT_AFTER = 450;

const { values } = parseArgs({
  options: {
    rate: { type: 'string', default: '1000' },
    seconds: { type: 'string', default: '30' },
    slow: { type: 'string', default: '500' },
    automations: { type: 'string', default: '50' },
    connections: { type: 'string', default: '64' },
    wait: { type: 'string', default: '10' },
    program: { type: 'string', default: path.resolve(import.meta.dirname ?? '.', '../../target/release/dirigent') },
  },
});
const [rate, seconds, slow, automations, connections] = ['rate', 'seconds', 'slow', 'automations', 'connections'].map(
  (name) => Number(values[name]),
);

const root = makeRoot();
const daemon = await serve(root);
const stopSlow = holdSlow(daemon.port);
const told = { runs: new Map(), codes: {}, doubled: 0 };
const result = await load(daemon.port);
stopSlow();
await settled(root);
const { utime, peakMiB } = usage(daemon.child.pid);
daemon.child.kill('SIGTERM');
await new Promise((resolve) => daemon.child.on('exit', resolve));
const counts = count(root);
fs.rmSync(root, { recursive: true, force: true });

const accepted = told.runs.size;
const wrong = [
  counts.rows !== counts.deliveries && 'a delivery has more than one row, or a row none',
  counts.untold > connections && 'rows that nobody was told of',
  counts.lost > 0 && 'accepted deliveries without a row',
  told.doubled > 0 && 'one delivery was answered with two runs',
  counts.open > 0 && 'rows that have not ended',
].filter(Boolean);
console.log(
  JSON.stringify(
    {
      conditions: {
        rate: rate || 'closed loop', seconds, slow, automations, connections, wait: Number(values.wait),
        durability: 'each accepted row synced', cores: os.availableParallelism(), kernel: os.release(),
      },
      posts: result.requests.total,
      perSecond: result.requests.average,
      latencyMs: { p50: result.latency.p50, p90: result.latency.p90, p99: result.latency.p99, max: result.latency.max },
      statuses: told.codes,
      errors: result.errors,
      timeouts: result.timeouts,
      accepted,
      ...counts,
      daemonCpuSeconds: utime,
      daemonPeakMiB: peakMiB,
      wrong,
    },
    null,
    2,
  ),
);
process.exit(wrong.length ? 1 : 0);

function makeRoot() {
  const root = fs.mkdtempSync(path.join(os.tmpdir(), 'dirigent-load-'));
  fs.writeFileSync(path.join(root, 'dirigent.toml'), '[hooks]\nposts_per_minute = 1000000\n');
  const secretHash = createHash('sha256').update(SECRET).digest('hex');
  for (let n = 0; n < automations; n++) {
    const dir = path.join(root, `app${n % APPS}`, 'automations', `hook${n}`);
    fs.mkdirSync(dir, { recursive: true });
    const manifest = {
      name: `hook ${n}`, prompt: 'load', generated: { by: 'load', at: 'now' },
      triggers: [{ kind: 'webhook', id: `hook${n}`, secretHash }],
      concurrency: { mode: 'queued', max: 10000 }, history: { keep: 'all' },
    };
    fs.writeFileSync(path.join(dir, 'automation.json'), JSON.stringify(manifest));
    fs.writeFileSync(path.join(dir, 'handler.js'), 'export default ({ input }) => ({ output: { n: input.n } });\n');
  }
  return root;
}

async function serve(root) {
  const args = ['--json', 'serve', root, '--admin', '127.0.0.1:0', '--hooks', '127.0.0.1:0'];
  const env = { ...process.env, DIRIGENT_LOG: 'warn' };
  const child = spawn(values.program, args, { stdio: ['ignore', 'pipe', 'inherit'], env });
  const line = await new Promise((resolve) => child.stdout.once('data', (data) => resolve(String(data))));
  return { child, port: Number(new URL(JSON.parse(line).hooks).port) };
}

/** Connections that do nothing, trickle a head, or trickle a body; closed ones are opened again. */
function holdSlow(port) {
  let going = true;
  const open = new Set();
  const start = (n) => {
    if (!going) return;
    const socket = net.connect(port, '127.0.0.1');
    open.add(socket);
    const head = 'POST /_centraid-hook/hook0 HTTP/1.1\r\nhost: x\r\n';
    const said = ['', head, `${head}authorization: Bearer ${SECRET}\r\ncontent-length: 60000\r\n\r\n`][n % 3];
    if (said) socket.write(said);
    const timer = setInterval(() => said && socket.writable && socket.write('x'), 1000);
    socket.on('error', () => {});
    socket.on('close', () => {
      clearInterval(timer);
      open.delete(socket);
      setTimeout(start, 200, n);
    });
  };
  for (let n = 0; n < slow; n++) start(n);
  return () => {
    going = false;
    for (const socket of open) socket.destroy();
  };
}

function load(port) {
  let sent = 0;
  const setupRequest = (request, context) => {
    const n = sent++;
    const repeats = n % 100 === 99 && n > REPEAT_AFTER;
    context.delivery = repeats ? n - REPEAT_AFTER : n;
    const slug = `hook${context.delivery % automations}`;
    const body = JSON.stringify({ n: context.delivery, pad: 'x'.repeat(200) });
    const headers = { ...request.headers, 'idempotency-key': `d${context.delivery}` };
    return { ...request, path: `/_centraid-hook/${slug}?wait=${values.wait}`, headers, body };
  };
  const onResponse = (status, body, context) => {
    told.codes[status] = (told.codes[status] ?? 0) + 1;
    if (status !== 200 && status !== 202) return;
    const { runId } = JSON.parse(body);
    const known = told.runs.get(context.delivery);
    if (known && known !== runId) told.doubled++;
    told.runs.set(context.delivery, runId);
  };
  return autocannon({
    url: `http://127.0.0.1:${port}`,
    connections,
    duration: seconds,
    ...(rate ? { overallRate: rate } : {}),
    timeout: 70,
    requests: [
      {
        method: 'POST',
        headers: { authorization: `Bearer ${SECRET}`, 'content-type': 'application/json' },
        setupRequest,
        onResponse,
      },
    ],
  });
}

/** What was accepted when the load ended is run to its end. */
async function settled(root) {
  for (let tries = 0; tries < 300 && count(root).open > 0; tries++) await new Promise((resolve) => setTimeout(resolve, 200));
}

function usage(pid) {
  const fields = fs.readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1].split(' ');
  const peak = /VmHWM:\s+(\d+)/.exec(fs.readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1];
  return { utime: (Number(fields[11]) + Number(fields[12])) / 100, peakMiB: Math.round(Number(peak) / 1024) };
}

function count(root) {
  const sums = { rows: 0, deliveries: 0, open: 0, failed: 0, lost: 0, untold: 0 };
  const onDisk = new Map();
  for (let app = 0; app < APPS; app++) {
    const file = path.join(root, `app${app}`, 'runtime.sqlite');
    if (!fs.existsSync(file)) continue;
    const query = "select run_id, status, json_extract(trigger_json, '$.deliveryId') from runs";
    const text = execFileSync('sqlite3', [file, query], { encoding: 'utf8', maxBuffer: 1 << 30 });
    for (const row of text.trim().split('\n').filter(Boolean)) {
      const [runId, status, delivery] = row.split('|');
      sums.rows++;
      if (status === 'queued' || status === 'running') sums.open++;
      if (status !== 'ok') sums.failed++;
      onDisk.set(delivery, runId);
    }
  }
  sums.deliveries = onDisk.size;
  for (const [delivery, runId] of told.runs) if (onDisk.get(`d${delivery}`) !== runId) sums.lost++;
  sums.untold = sums.rows - told.runs.size;
  return sums;
}
