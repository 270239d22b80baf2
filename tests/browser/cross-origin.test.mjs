// What a page of another origin can do to a daemon whose user is logged in: nothing, and it learns nothing.
//
// The attacks are made by a real page in the browser that holds the session. From a neighbour (another port of the
// same address) the session's cookie goes along, because browsers tell neither sites nor cookies apart by port; from
// another site it stays behind; and a name that was rebound makes the page and the daemon one origin in the
// browser's eyes. Each attack is first made on a server without any defence, so that an attack which browsers stop
// by themselves, or which was written wrong, is not mistaken for a defence.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import http from 'node:http';
import net from 'node:net';
import { after, before, describe, test } from 'node:test';

import { PATIENCE, guardedPage, launch, makeRoot, serve, signIn } from './harness.mjs';

const VICTIM = 'auto.victim/target';
/** What an attacker would like to have done. The body suits the first of them, and does no harm to the others. */
const CHANGES = [
  `/v1/automations/${VICTIM}/run`,
  `/v1/automations/${VICTIM}/disable`,
  `/v1/automations/${VICTIM}/webhook/rotate`,
  '/v1/login-links',
  '/v1/logout',
  '/centraid/_tool/centraid_write',
];
const READS = ['/v1/automations', `/v1/automations/${VICTIM}`, '/v1/runs', '/v1/events', '/v1/tools', '/metrics', '/'];
const BODY = '{"input":{"evil":true}}';

/**
 * The attacks, as functions that run in the attacker's page. Each resolves when the browser has finished with it, to
 * what the page could read, or to null.
 */
const ATTACKS = {
  'a form': ({ url }) => globalThis.submit(url, 'application/x-www-form-urlencoded', { input: 'evil' }),
  'a form with parts': ({ url }) => globalThis.submit(url, 'multipart/form-data', { input: 'evil' }),
  // Comes out as `{"input":{"evil":true},"x":"="}`.
  'a form that spells JSON': ({ url }) =>
    globalThis.submit(url, 'text/plain', { '{"input":{"evil":true},"x":"': '"}' }),
  'fetch without CORS': ({ url, body }) => globalThis.read(url, { method: 'POST', mode: 'no-cors', body }),
  'fetch without CORS and without a type': ({ url, body }) =>
    globalThis.read(url, { method: 'POST', mode: 'no-cors', body: new Blob([body]) }),
  'fetch without CORS that outlives its page': ({ url, body }) =>
    globalThis.read(url, { method: 'POST', mode: 'no-cors', body, keepalive: true }),
  'fetch of plain text': ({ url, body }) => globalThis.read(url, { method: 'POST', body }),
  'a request object': ({ url, body }) =>
    new Promise((done) => {
      const request = new XMLHttpRequest();
      request.open('POST', url);
      request.withCredentials = true;
      request.setRequestHeader('content-type', 'text/plain');
      request.onloadend = () => done(request.responseText || null);
      request.send(body);
    }),
  'a beacon': ({ url, body }) => {
    navigator.sendBeacon(url, body);
    return globalThis.sent(url);
  },
  'a beacon of form fields': ({ url }) => {
    navigator.sendBeacon(url, new URLSearchParams({ input: 'evil' }));
    return globalThis.sent(url);
  },
  'a ping': ({ url }) => {
    const link = Object.assign(document.createElement('a'), { href: '#here', ping: url });
    document.body.append(link);
    link.click();
    return null;
  },
};

/** These need the server's leave before they are sent, so they reach not even the one without defences. */
const STOPPED_BY_THE_BROWSER = {
  'fetch of JSON': ({ url, body }) =>
    globalThis.read(url, { method: 'POST', headers: { 'content-type': 'application/json' }, body }),
  'fetch with a guessed token': ({ url, body }) =>
    globalThis.read(url, {
      method: 'POST',
      headers: { authorization: 'Bearer 0', 'content-type': 'text/plain' },
      body,
    }),
  'a beacon of JSON': ({ url, body }) => {
    navigator.sendBeacon(url, new Blob([body], { type: 'application/json' }));
    return null;
  },
};

const READERS = {
  fetch: ({ url }) => globalThis.read(url, {}),
  'fetch without CORS': ({ url }) => globalThis.read(url, { mode: 'no-cors' }),
  'an image': ({ url }) => globalThis.load('img', { src: url }),
  'a script': ({ url }) => globalThis.load('script', { src: url }),
  'a module': ({ url }) =>
    import(url).then(
      () => 'it was run',
      () => null,
    ),
  'a style sheet': ({ url }) => globalThis.load('link', { rel: 'stylesheet', href: url }),
  'a prefetch': ({ url }) => globalThis.load('link', { rel: 'prefetch', href: url }),
  'a video': ({ url }) => globalThis.load('video', { src: url }, 'canplay'),
  'an object': ({ url }) => globalThis.load('object', { data: url }),
  'a frame': ({ url }) =>
    new Promise((done) => {
      const frame = Object.assign(document.createElement('iframe'), { src: url });
      // Also a frame that was refused loads, with a page of the browser's own in it.
      frame.onload = () => done(frame.contentDocument?.body.textContent || null);
      document.body.append(frame);
    }),
  'a stream of events': ({ url }) =>
    new Promise((done) => {
      const source = new EventSource(url, { withCredentials: true });
      source.onmessage = source.onopen = () => done('it was opened');
      source.onerror = () => source.close() ?? done(null);
    }),
  'a socket': ({ url }) =>
    new Promise((done) => {
      const socket = new WebSocket(url.replace('http', 'ws'));
      socket.onopen = () => done('it was opened');
      socket.onclose = () => done(null);
    }),
};

/** What the attacks above are made with. Runs in the attacker's page before anything else. */
function tools() {
  let frames = 0;
  globalThis.submit = (url, enctype, fields) =>
    new Promise((done) => {
      const frame = Object.assign(document.createElement('iframe'), { name: `frame${frames++}` });
      document.body.append(frame);
      const form = Object.assign(document.createElement('form'), {
        action: url,
        method: 'post',
        enctype,
        target: frame.name,
      });
      for (const [name, value] of Object.entries(fields)) {
        form.append(Object.assign(document.createElement('input'), { name, value, type: 'hidden' }));
      }
      document.body.append(form);
      frame.onload = () => {
        let text = null;
        try {
          text = frame.contentDocument?.body.textContent || null;
        } catch {
          // Not ours to read.
        }
        done(text);
      };
      form.submit();
    });
  globalThis.read = async (url, options) => {
    try {
      const response = await fetch(url, { credentials: 'include', ...options });
      return (await response.text()) || null;
    } catch {
      return null;
    }
  };
  globalThis.sent = (url) =>
    new Promise((done) => {
      const seen = () => performance.getEntriesByName(url).some((entry) => entry.initiatorType === 'beacon');
      if (seen()) return done(null);
      const observer = new PerformanceObserver(() => seen() && (observer.disconnect(), done(null)));
      observer.observe({ type: 'resource', buffered: true });
    });
  globalThis.load = (tag, properties, event = 'load') =>
    new Promise((done) => {
      const element = Object.assign(document.createElement(tag), properties);
      element.addEventListener(event, () => done('it was loaded'));
      element.addEventListener('error', () => done(null));
      document.body.append(element);
    });
}

/** Answers everything with 200, whoever asks, and remembers who did. */
async function listen(answer) {
  const asked = [];
  const server = http.createServer((request, response) => {
    const { cookie, 'content-type': type } = request.headers;
    asked.push({ method: request.method, path: request.url, type, cookie });
    answer(request, response);
    server.emit('asked');
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const until = async (is) => {
    while (!is()) await once(server, 'asked', { signal: AbortSignal.timeout(PATIENCE) });
  };
  return { asked, until, port: server.address().port, close: () => (server.closeAllConnections(), server.close()) };
}

describe('a page of another origin', { timeout: 300_000 }, () => {
  let served;
  let chromium;
  let evil;
  let naive;
  let name;
  let tap;

  before(async () => {
    const root = await makeRoot({ empty: true });
    await root.automation(VICTIM, { description: 'SECRET' }, "export default () => ({ summary: 'SECRET' });");
    served = await serve(root);
    evil = await listen((_, response) => {
      response.setHeader('content-type', 'text/html').setHeader('connection', 'close');
      response.end('<!doctype html><title>evil</title>');
    });
    name = await nameServer(evil.port);
    tap = await wiretap(served.port);
    const rules = [
      `MAP evil.test:${served.port} 127.0.0.1:${name.listens}`,
      'MAP evil.test 127.0.0.1',
      `MAP 127.0.0.1:${served.port} 127.0.0.1:${tap.port}`,
    ];
    chromium = await launch([`--host-resolver-rules=${rules.join(', ')}`]);
    naive = await listen((_, response) => response.setHeader('content-type', 'text/plain').end('SECRET'));
  });
  after(async () => {
    await chromium?.close();
    evil?.close();
    naive?.close();
    name?.close();
    tap?.close();
    await served?.stop();
  });

  /** A browser that is logged in, and in it a page of the attacker's at `origin`. */
  async function attacker(t, origin) {
    // It is the attacker's page that things go wrong on.
    const page = await signIn(t, chromium, served, { allow: () => true });
    const cookies = await page.context().cookies();
    assert.deepEqual(
      cookies.map(({ httpOnly, sameSite, domain, path }) => ({ httpOnly, sameSite, domain, path })),
      [{ httpOnly: true, sameSite: 'Strict', domain: '127.0.0.1', path: '/' }],
    );
    const evilPage = await page.context().newPage();
    tap.heard.length = 0;
    await evilPage.addInitScript(tools);
    await evilPage.goto(origin);
    return { victim: page, page: evilPage };
  }

  const attempt = async (page, attacks, target, paths) => {
    const got = {};
    for (const [name, attack] of Object.entries(attacks)) {
      for (const path of paths) {
        got[`${name}: ${path}`] = await page.evaluate(attack, { url: target + path, body: BODY });
      }
    }
    return got;
  };

  const nothing = (got) =>
    assert.deepEqual(
      Object.entries(got).filter(([, read]) => read !== null),
      [],
      'what was read',
    );

  async function unchanged(manifest, victim) {
    assert.deepEqual(await served.runs(), []);
    assert.equal(await served.root.read('auto.victim/automations/target/automation.json'), manifest);
    // Nor was the user logged out.
    const response = await victim.reload();
    assert.equal(response.status(), 200);
  }

  const places = [
    ['a neighbour, which the cookie is sent by', () => `http://127.0.0.1:${evil.port}/`, true],
    ['another site', () => `http://evil.test:${evil.port}/`, false],
  ];
  for (const [place, origin, cookieGoesAlong] of places) {
    test(`${place}: changes nothing`, async (t) => {
      const manifest = await served.root.read('auto.victim/automations/target/automation.json');
      const { page, victim } = await attacker(t, origin());

      naive.asked.length = 0;
      await attempt(page, ATTACKS, `http://127.0.0.1:${naive.port}`, ['/v1/x']);
      await attempt(page, STOPPED_BY_THE_BROWSER, `http://127.0.0.1:${naive.port}`, ['/v1/stopped']);
      const posts = () => naive.asked.filter(({ method }) => method === 'POST');
      // Beacons and pings are sent when the browser finds the time.
      await naive.until(() => posts().length >= Object.keys(ATTACKS).length);
      assert.equal(posts().length, Object.keys(ATTACKS).length, JSON.stringify(posts()));
      assert.ok(posts().every(({ path }) => path === '/v1/x'));
      assert.ok(
        posts().every(({ cookie }) => (cookie !== undefined) === cookieGoesAlong),
        JSON.stringify(posts()),
      );

      nothing(await attempt(page, ATTACKS, served.admin, CHANGES));
      nothing(await attempt(page, STOPPED_BY_THE_BROWSER, served.admin, CHANGES));
      const refused = (attacks) => Object.keys(attacks).map(() => 403);
      for (const path of CHANGES) {
        assert.deepEqual(await tap.answers('POST', path, refused(ATTACKS).length), refused(ATTACKS), path);
        const asked = refused(STOPPED_BY_THE_BROWSER);
        assert.deepEqual(await tap.answers('OPTIONS', path, asked.length), asked, path);
      }
      await unchanged(manifest, victim);
    });

    test(`${place}: reads nothing`, async (t) => {
      const { page } = await attacker(t, origin());
      const assets = await victimAssets(served);
      nothing(await attempt(page, READERS, served.admin, [...READS, ...assets]));
      assert.ok(tap.heard.length >= Object.keys(READERS).length);
      assert.deepEqual([...new Set(tap.heard.map(({ status }) => status))], [403]);
    });

    test(`${place}: a window that it opens is out of its reach`, async (t) => {
      const { page, victim } = await attacker(t, origin());
      const manifest = await served.root.read('auto.victim/automations/target/automation.json');
      for (const path of ['/', ...READS, ...CHANGES, '/login?code=0']) {
        const opened = page.context().waitForEvent('page');
        await page.evaluate((url) => void (globalThis.opened = window.open(url)), served.admin + path);
        const window = await opened;
        await window.waitForLoadState();
        assert.ok(!(await window.content()).includes('SECRET'), path);
        const reach = await page.evaluate(() => {
          try {
            return globalThis.opened.document.body.textContent;
          } catch {
            return null;
          }
        });
        assert.ok(!reach, `${path}: ${reach}`);
        await window.close();
      }
      await unchanged(manifest, victim);
    });
  }

  test('a name that was rebound to this machine gets no further than its Host', async (t) => {
    const manifest = await served.root.read('auto.victim/automations/target/automation.json');
    const origin = `http://evil.test:${served.port}`;
    const page = await guardedPage(t, chromium, [origin], { allow: () => true });
    // The name's first answer is the attacker's; from then on it leads to the daemon, and all is one origin.
    await page.goto(`${origin}/`);
    name.port = served.port;
    const ask = (path, options) =>
      page.evaluate(
        async ([path, options]) => {
          const response = await fetch(path, options);
          return `${response.status} ${(await response.text()).match(/"code":"(\w+)"/)?.[1]}`;
        },
        [path, options],
      );
    for (const path of [...READS, '/login?code=0', '/readyz', '/openapi.json']) {
      assert.equal(await ask(path, {}), '421 wrong_host', path);
    }
    for (const path of CHANGES) {
      const headers = { 'content-type': 'application/json' };
      assert.equal(await ask(path, { method: 'POST', headers, body: BODY }), '421 wrong_host', path);
      // Even with the token, which nobody there has.
      headers.authorization = `Bearer ${served.token}`;
      assert.equal(await ask(path, { method: 'POST', headers, body: BODY }), '421 wrong_host', path);
    }
    assert.deepEqual(await served.runs(), []);
    assert.equal(await served.root.read('auto.victim/automations/target/automation.json'), manifest);
  });
});

/**
 * Stands between the browser and the daemon, which neither of them notices, and writes down what other origins ask for
 * and what they are answered: the browser would keep much of it to itself.
 */
async function wiretap(port) {
  const heard = [];
  const server = http.createServer((request, response) => {
    const { url, method, rawHeaders } = request;
    const onward = http.request({ host: '127.0.0.1', port, method, path: url, headers: rawHeaders, setHost: false });
    const gone = () => response.destroy();
    onward.on('error', gone);
    response.on('close', () => onward.destroy());
    onward.on('response', (answer) => {
      const { statusCode: status, rawHeaders: headers } = answer;
      if (!['same-origin', 'none'].includes(request.headers['sec-fetch-site'])) {
        heard.push({ method, path: url, status });
        server.emit('heard');
      }
      response.writeHead(status, headers);
      answer.on('error', gone).pipe(response);
    });
    request.pipe(onward);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    heard,
    port: server.address().port,
    close: () => (server.closeAllConnections(), server.close()),
    /** The statuses of these, once there are so many. */
    async answers(method, path, count) {
      const found = () => heard.filter((one) => one.method === method && one.path === path);
      while (found().length < count) await once(server, 'heard', { signal: AbortSignal.timeout(PATIENCE) });
      return found().map(({ status }) => status);
    },
  };
}

/** A port that leads to another one, which can be changed: what a name's owner does to the name. */
async function nameServer(first) {
  const at = { port: first };
  const server = net.createServer((from) => {
    const to = net.connect(at.port, '127.0.0.1');
    from.pipe(to).pipe(from);
    for (const [one, other] of [
      [from, to],
      [to, from],
    ])
      one.on('error', () => other.destroy());
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return Object.assign(at, { listens: server.address().port, close: () => server.close() });
}

/** The addresses of the dashboard's own files. */
async function victimAssets(served) {
  const response = await fetch(`${served.admin}/`);
  const found = [...(await response.text()).matchAll(/(?:src|href)="(\/assets\/[^"]+)"/g)].map(([, where]) => where);
  assert.ok(found.length > 0, 'the page names its files');
  return found;
}
