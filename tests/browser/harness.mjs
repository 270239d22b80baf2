// A daemon on a root of its own, a Chromium, and pages that may not go wrong.
//
// Nothing here sleeps: tests wait for an element, an event or an answer. PATIENCE only bounds how long a failing test
// takes to fail. A page fails its test on any console error, uncaught exception, violation of the content security
// policy, dialog, or request to anywhere but its daemon, unless the test says that it expects one.

import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { accessSync, constants, createWriteStream, existsSync } from 'node:fs';
import { cp, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

import { chromium } from 'playwright-core';

/** Longer than anything takes on two slow, busy cores. */
export const PATIENCE = 30_000;

const REPOSITORY = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
const EXAMPLES = path.join(REPOSITORY, 'fixtures/apps');
const PROGRAM = path.join(path.resolve(REPOSITORY, process.env.CARGO_TARGET_DIR ?? 'target'), 'debug/dirigent');
const AXE = await readFile(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

/** A folder to serve, a copy of the example apps at first; `empty` starts with nothing. */
export async function makeRoot({ empty = false } = {}) {
  const dir = await mkdtemp(path.join(tmpdir(), 'dirigent-browser-'));
  // What a daemon left there on this machine is no example.
  const filter = (from) => !/(\.dirigent|\.sqlite[^/]*)$/.test(from);
  if (!empty) await cp(EXAMPLES, dir, { recursive: true, filter });
  return new Root(dir);
}

export class Root {
  constructor(dir) {
    this.dir = dir;
  }

  join(relative) {
    return path.join(this.dir, relative);
  }

  async write(relative, text) {
    await mkdir(path.dirname(this.join(relative)), { recursive: true });
    await writeFile(this.join(relative), text);
  }

  async manifest(handle, fields = {}) {
    const [app, id] = handle.split('/');
    const whole = { name: id, prompt: 'A test.', generated: { by: 'test', at: '2026-11-21' }, ...fields };
    await this.write(`${app}/automations/${id}/automation.json`, `${JSON.stringify(whole, null, 2)}\n`);
  }

  async automation(handle, fields, handler) {
    const [app, id] = handle.split('/');
    await this.write(`${app}/automations/${id}/handler.js`, handler);
    await this.manifest(handle, fields);
  }

  async read(relative) {
    return readFile(this.join(relative), 'utf8');
  }
}

/** Starts `dirigent serve` on `root`; `stop` ends it and removes the root. */
export async function serve(root) {
  if (!existsSync(PROGRAM)) throw new Error(`${PROGRAM} is not there; hint: cargo build`);
  const env = { ...process.env, NO_COLOR: '1' };
  delete env.DIRIGENT_ROOT;
  const args = ['--json', 'serve', root.dir, '--admin', '127.0.0.1:0', '--hooks', '127.0.0.1:0'];
  const child = spawn(PROGRAM, args, { env, stdio: ['ignore', 'pipe', 'pipe'] });
  const log = root.join('serve.log');
  child.stderr.pipe(createWriteStream(log));
  const gone = once(child, 'exit');
  const line = await Promise.race([
    once(createInterface(child.stdout), 'line').then(([line]) => line),
    gone.then(() => null),
  ]);
  if (line === null) throw new Error(`serve ended before it was ready: ${await readFile(log, 'utf8')}`);
  const ready = JSON.parse(line);
  const token = (await root.read('.dirigent/token')).trim();
  return new Served(root, child, gone, ready, token);
}

export class Served {
  constructor(root, child, gone, ready, token) {
    Object.assign(this, { root, child, gone, ready, token });
    /** The origin of the admin listener, without a slash at the end. */
    this.admin = ready.admin.replace(/\/$/, '');
    this.hooks = ready.hooks.replace(/\/$/, '');
  }

  get port() {
    return Number(new URL(this.admin).port);
  }

  /** Asks the API with the admin token; `{ status, body }`. */
  async api(method, where, body) {
    const headers = { authorization: `Bearer ${this.token}` };
    if (method === 'POST') headers['content-type'] = 'application/json';
    const options = { method, headers, body: method === 'POST' ? JSON.stringify(body ?? {}) : undefined };
    const response = await fetch(this.admin + where, options);
    const text = await response.text();
    try {
      return { status: response.status, body: JSON.parse(text) };
    } catch {
      return { status: response.status, body: text };
    }
  }

  /** Runs an automation to its end, and returns the run. */
  async run(handle, input) {
    const { status, body } = await this.api('POST', `/v1/automations/${handle}/run?wait=60`, { input });
    assert.equal(status, 200, JSON.stringify(body));
    return body;
  }

  /** Starts an automation, and returns its run's id once the row is written. */
  async start(handle, input) {
    const { status, body } = await this.api('POST', `/v1/automations/${handle}/run`, { input });
    assert.equal(status, 202, JSON.stringify(body));
    return body.runId;
  }

  /** Every run that stands in a ledger, newest first, read past the daemon. */
  async runs() {
    const { stdout } = await promisify(execFile)(PROGRAM, [
      '--json',
      '--root',
      this.root.dir,
      'runs',
      '--limit',
      '10000',
    ]);
    return JSON.parse(stdout).runs;
  }

  /** A link that lets a browser in, once. */
  async loginLink() {
    const { status, body } = await this.api('POST', '/v1/login-links');
    assert.equal(status, 200, JSON.stringify(body));
    return body.url;
  }

  async stop() {
    this.child.kill('SIGKILL');
    await this.gone;
    // A host that still ends may write there while the folder goes.
    await rm(this.root.dir, { recursive: true, force: true, maxRetries: 5 });
  }
}

function findChromium() {
  const names = ['chromium', 'chromium-browser', 'google-chrome-stable', 'google-chrome'];
  const places = (process.env.PATH ?? '').split(path.delimiter);
  const found = [process.env.CHROMIUM, ...names.flatMap((name) => places.map((place) => path.join(place, name)))];
  for (const file of found) {
    if (!file) continue;
    try {
      accessSync(file, constants.X_OK);
      return file;
    } catch {
      // The next one.
    }
  }
  throw new Error('no Chromium on the PATH; hint: apt-get install chromium, or set CHROMIUM');
}

export function launch(args = []) {
  return chromium.launch({
    executablePath: findChromium(),
    // Chromium's own sandbox does not start as root, which is what containers run as.
    chromiumSandbox: process.getuid?.() !== 0,
    args,
  });
}

/**
 * A page that is signed in, at the list of automations.
 *
 * `allow`: a function that takes the text of what went wrong on the page, and tells whether it was meant to.
 */
export async function signIn(t, browser, served, { allow = () => false, ...context } = {}) {
  const page = await guardedPage(t, browser, [served.admin], { allow, ...context });
  await page.goto(await served.loginLink());
  await page.getByTestId('search').waitFor();
  return page;
}

/** A page in a context of its own, whose troubles fail the test at its end. */
export async function guardedPage(t, browser, origins, { allow = () => false, ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ...options });
  context.setDefaultTimeout(PATIENCE);
  const troubles = [];
  const trouble = (text) => allow(text) || troubles.push(text);
  await context.addInitScript(() => {
    addEventListener('securitypolicyviolation', (event) => {
      console.error(
        `policy: ${event.violatedDirective} forbids ${event.blockedURI} at ${event.sourceFile}:${event.lineNumber}`,
      );
    });
  });
  context.on('console', (message) => {
    if (message.type() === 'error') trouble(`console: ${message.text()} (${message.location().url})`);
  });
  context.on('weberror', (error) => trouble(`uncaught: ${error.error().stack ?? error.error()}`));
  context.on('dialog', (dialog) => {
    trouble(`dialog: ${dialog.message()}`);
    dialog.dismiss();
  });
  context.on('request', (request) => {
    const url = new URL(request.url());
    if (!['data:', 'blob:', 'about:'].includes(url.protocol) && !origins.includes(url.origin))
      trouble(`request: ${url}`);
  });
  t.after(async () => {
    await context.close();
    assert.deepEqual(troubles, [], 'what went wrong on the page');
  });
  const page = await context.newPage();
  page.troubles = troubles;
  return page;
}

/** The serious and critical findings of axe, one line each. */
export async function seriousFindings(page) {
  // Evaluated by the debugger, so that the page's policy need not let it in.
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ['violations'] }));
  return violations
    .filter(({ impact }) => impact === 'serious' || impact === 'critical')
    .flatMap(({ id, impact, nodes }) => nodes.map((node) => `${impact} ${id}: ${node.html} ${node.failureSummary}`));
}

/** Whether one can see what has the focus: it looks different without. */
export async function showsFocus(page) {
  const clip = await page.evaluate(() => {
    const boxes = [document.activeElement, document.activeElement.closest('li') ?? document.activeElement].map(
      (element) => element.getBoundingClientRect(),
    );
    const [left, top] = [Math.min(...boxes.map((box) => box.left)) - 6, Math.min(...boxes.map((box) => box.top)) - 6];
    const [right, bottom] = [
      Math.max(...boxes.map((box) => box.right)) + 6,
      Math.max(...boxes.map((box) => box.bottom)) + 6,
    ];
    const [x, y] = [Math.max(0, left), Math.max(0, top)];
    return { x, y, width: Math.min(innerWidth, right) - x, height: Math.min(innerHeight, bottom) - y };
  });
  if (clip.width <= 0 || clip.height <= 0) return false;
  const looks = () => page.screenshot({ clip, animations: 'disabled', caret: 'initial' });
  const focused = await looks();
  await page.evaluate(() => {
    globalThis.hadFocus = document.activeElement;
    document.activeElement.blur();
  });
  const blurred = await looks();
  await page.evaluate(() => globalThis.hadFocus.focus({ preventScroll: true, focusVisible: true }));
  return !focused.equals(blurred);
}

/** Controls that stand partly outside of a box which cuts off what stands outside of it. */
export function cutOff(page) {
  return page.evaluate(() => {
    const cut = [];
    for (const control of document.querySelectorAll('a, button, select, input, textarea')) {
      const box = control.getBoundingClientRect();
      if (box.width === 0 || box.height === 0) continue;
      for (let around = control.parentElement; around; around = around.parentElement) {
        const { overflowX } = getComputedStyle(around);
        // What scrolls can be scrolled to.
        if (overflowX === 'auto' || overflowX === 'scroll') break;
        if (overflowX === 'visible') continue;
        const edge = around.getBoundingClientRect();
        if (box.left < edge.left - 1 || box.right > edge.right + 1) {
          cut.push(
            `${control.outerHTML.slice(0, 120)} ends at ${box.right}, ${around.className} at ${edge.right}`,
          );
          break;
        }
      }
    }
    return cut;
  });
}

/** How many pixels the page is wider than its window. */
export function overflow(page) {
  return page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
}
