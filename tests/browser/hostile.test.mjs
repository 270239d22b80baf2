// Everything that a run, a manifest or a caller says is text on the page: it makes no element, runs nothing, asks
// nobody, and neither widens the page nor turns what stands beside it around.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { guardedPage, launch, makeRoot, overflow, serve, signIn } from './harness.mjs';
import { calls, openAutomation, openRun, row, runRow } from './pages.mjs';

/** As nasty as text gets. `mark` tells where it was put. */
const nasty = (mark) =>
  `${mark} <script>globalThis.pwned = 1; alert(1)</script></script><img src=x onerror="globalThis.pwned = 1">` +
  `<img src="http://evil.test/${mark}"><b class="injected">bold</b></textarea></title></style></pre>` +
  `<svg onload="globalThis.pwned = 1"></svg><iframe srcdoc="x"></iframe>&lt;b&gt;&#60; %3Cscript%3E ` +
  `\${globalThis.pwned = 1} {{constructor}} <a href="javascript:globalThis.pwned = 1">a</a> ` +
  // Turns what follows around, and does not turn it back.
  `\u2067\u202Eevil \u{1F4A3}\u0301\u200B\uFEFF "'\``;
const LONG = 'unbroken'.repeat(500);

const HANDLER = `
const nasty = ${nasty.toString()};
export default async ({ ctx, log, input }) => {
  log.info(nasty('logged'), { [nasty('field')]: nasty('value') });
  log.warn(nasty('before fields'), { plain: 'fields' });
  log.warn(${JSON.stringify(LONG)});
  const args = { app: nasty('app'), query: nasty('query'), [nasty('key')]: nasty('argument') };
  await ctx.tool('centraid_read', args).catch(() => {});
  const { output } = await ctx.invoke('echo', { input: nasty('invoked') });
  await ctx.tool(nasty('tool'), { long: ${JSON.stringify(LONG)} }).catch(() => {});
  // ${nasty('source').replace(/\n/g, ' ')}
  if (input?.fail) throw new Error(nasty('error') + '\\n' + nasty('second line'));
  const long = ${JSON.stringify(LONG)};
  return { summary: nasty('summary'), output: { [nasty('output key')]: nasty('output'), output, long } };
};
`;

const WIDTHS = [1280, 360];

describe('hostile text', { timeout: 300_000 }, () => {
  let served;
  let chromium;
  let okRun;
  let failedRun;
  let postedRun;

  before(async () => {
    const root = await makeRoot({ empty: true });
    const fields = {
      name: nasty('name'),
      description: nasty('description'),
      prompt: nasty('prompt'),
      version: nasty('version'),
    };
    await root.automation('auto.nasty/target', { ...fields, [nasty('unknown field')]: nasty('unknown') }, HANDLER);
    await root.automation('auto.nasty/echo', {}, 'export default ({ input }) => ({ summary: input, output: input });');
    const hook = { triggers: [{ kind: 'webhook', pending: true }] };
    await root.automation('auto.nasty/posted', hook, 'export default ({ input }) => ({ summary: input });');
    await root.automation(
      'auto.nasty/long',
      { name: LONG, description: LONG },
      'export default () => ({ summary: ' + JSON.stringify(LONG) + ' });',
    );
    await root.automation(
      'auto.nasty/bidi',
      {},
      'export default () => {\n  /* \u202E } \u2066if (isAdmin)\u2069 \u2066 begin admins only */\n' +
        '  return "a\u200Bb";\n};\n',
    );
    // The registry tells what is wrong with it in its own words, and with some of theirs.
    await root.manifest('auto.nasty/broken', {
      ...fields,
      onFailure: nasty('handler'),
      triggers: [{ kind: 'cron', expr: nasty('expr') }],
      requires: { model: nasty('model') },
    });
    served = await serve(root);
    chromium = await launch();
    okRun = await served.run('auto.nasty/target', { given: nasty('input'), long: LONG });
    assert.equal(okRun.status, 'ok', JSON.stringify(okRun));
    failedRun = await served.run('auto.nasty/target', { fail: true });
    assert.equal(failedRun.status, 'error');
    await served.run('auto.nasty/long', LONG);
    const { body: hooked } = await served.api('POST', '/v1/automations/auto.nasty/posted/webhook/provision');
    postedRun = (await post(hooked)).runId;
  });
  after(async () => {
    await chromium?.close();
    await served?.stop();
  });

  test('would be noticed if it were markup', async (t) => {
    const page = await guardedPage(t, chromium, [served.admin], { allow: () => true });
    await page.setContent(`<p>${nasty('here')} <code>plain</code></p>`);
    assert.deepEqual(await page.evaluate(turnedAround), ['<code>plain</code>: plain']);
    assert.ok((await page.evaluate(foreignElements)).length >= 6);
    assert.equal(await page.evaluate(() => globalThis.pwned), 1);
    assert.equal(page.troubles.length, 0, 'they are allowed here');
  });

  test('shows what has no look of its own, in handlers, values, errors and logs', async (t) => {
    const page = await signIn(t, chromium, served);
    const signs = async (place) => {
      await place.locator('.unseen').first().waitFor();
      return new Set(await place.locator('.unseen').evaluateAll((all) => all.map((sign) => sign.dataset.code)));
    };
    const all = ['U+2067', 'U+202E', 'U+200B', 'U+FEFF'];
    await openRun(page, served, okRun.runId);
    await calls(page).first().locator('.node-head').first().click();
    const places = {
      output: page.getByTestId('run-output'),
      input: page.getByTestId('run-input-value'),
      summary: page.getByTestId('run-summary'),
      request: calls(page).first().getByLabel('request'),
      log: page.getByTestId('log-line').first(),
    };
    for (const [name, place] of Object.entries(places)) {
      assert.deepEqual([...(await signs(place))].sort(), [...all].sort(), name);
    }
    // What is copied is what was there.
    assert.ok((await places.output.locator('pre').textContent()).includes('\u2067\u202Eevil'));
    await openRun(page, served, failedRun.runId);
    assert.deepEqual([...(await signs(page.getByTestId('run-error')))].sort(), [...all].sort());
    await openAutomation(page, served, 'auto.nasty/bidi');
    await page.getByText('isAdmin').waitFor();
    assert.deepEqual([...(await signs(page.locator('#file')))].sort(), ['U+200B', 'U+202E', 'U+2066', 'U+2069']);
    const line = page.locator('#file .line', { hasText: 'isAdmin' });
    const stands = await line.evaluate((element) => {
      const left = [];
      const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
      for (let node = walker.nextNode(); node; node = walker.nextNode()) {
        const range = document.createRange();
        range.selectNodeContents(node);
        // A sign's own character takes no room.
        if (/[a-z]/.test(node.data)) left.push(range.getBoundingClientRect().left);
      }
      return left;
    });
    assert.equal(stands.length, 2, 'the condition, and what stands beside it');
    assert.ok(stands[0] < stands[1], 'in the order in which they are read by a machine');
  });

  for (const width of WIDTHS) {
    const viewport = { width, height: 900 };

    test(`in the list, ${width} px wide`, async (t) => {
      const page = await signIn(t, chromium, served, { viewport });
      await row(page, 'auto.nasty/long').waitFor();
      await isText(page, ['name', 'error']);
    });

    test(`in the list of runs, ${width} px wide`, async (t) => {
      const page = await signIn(t, chromium, served, { viewport });
      await page.getByTestId('nav-runs').click();
      await runRow(page, okRun.runId).waitFor();
      await isText(page, ['summary', 'error']);
    });

    test(`on an automation's page, ${width} px wide`, async (t) => {
      const page = await signIn(t, chromium, served, { viewport });
      await openAutomation(page, served, 'auto.nasty/target');
      await runRow(page, okRun.runId).waitFor();
      await isText(page, ['name', 'description', 'unknown field', 'source']);
      await openAutomation(page, served, 'auto.nasty/broken');
      await page.getByTestId('problem').first().waitFor();
      await isText(page, ['expr']);
    });

    test(`on a run's page, ${width} px wide`, async (t) => {
      const page = await signIn(t, chromium, served, { viewport });
      await openRun(page, served, okRun.runId);
      for (const call of await calls(page).all()) await call.locator('.node-head').first().click();
      await isText(page, [
        'logged',
        'field',
        'value',
        'argument',
        'invoked',
        'tool',
        'summary',
        'output',
        'output key',
        'input',
      ]);
      await openRun(page, served, failedRun.runId);
      await isText(page, ['error', 'second line']);
      await openRun(page, served, postedRun);
      await isText(page, ['posted']);
    });
  }
});

/** What a stranger with the secret may say: not even JSON, and an id of its own. */
async function post({ url, secret }) {
  const headers = {
    authorization: `Bearer ${secret}`,
    'content-type': 'text/html',
    'webhook-id': '<b class="injected">id</b>',
  };
  const response = await fetch(url, { method: 'POST', headers, body: nasty('posted') });
  const answer = await response.json();
  assert.equal(response.status, 200, JSON.stringify(answer));
  return answer;
}

/** What on the page nobody but a hostile text would have put there. Runs in the page. */
function foreignElements() {
  const foreign =
    '.injected, iframe, object, embed, base, [onerror], [onload], [srcdoc], a[href^="javascript" i], ' +
    'script:not([src^="/assets/"]), img:not([src^="/assets/"]), link:not([href^="/assets/"]), style';
  return [...document.querySelectorAll(foreign)].map((element) => element.outerHTML);
}

/** That the page shows each of these, as it was written, and that nothing came of it. */
async function isText(page, marks) {
  // What is folded stands in the page all the same.
  await page.evaluate(() => document.querySelectorAll('details').forEach((details) => (details.open = true)));
  const text = await page.evaluate(() => document.body.textContent);
  for (const mark of marks) {
    const beginning = `${mark} <script>globalThis.pwned = 1; alert(1)</script>`;
    // Inside JSON, quotes and control characters are escaped; this much has none.
    assert.ok(text.includes(beginning), `"${mark}" is not shown as it is`);
  }
  assert.equal(await page.evaluate(() => globalThis.pwned), undefined);
  assert.deepEqual(await page.evaluate(foreignElements), []);
  assert.ok((await overflow(page)) <= 0, 'the page is wider than its window');
  assert.deepEqual(await page.evaluate(turnedAround), [], 'text that its neighbours have turned around');
}

/** Plain words that run from right to left, because something hostile before them said so. Runs in the page. */
function turnedAround() {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const turned = [];
  const left = (node, at) => {
    const range = document.createRange();
    range.setStart(node, at);
    range.setEnd(node, at + 1);
    return range.getClientRects()[0];
  };
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const word = /[a-z0-9]{3,}/i.exec(node.data);
    if (word === null || /[^\n -~]/.test(node.data)) continue;
    const [first, last] = [left(node, word.index), left(node, word.index + word[0].length - 1)];
    // Not shown, or broken over two lines.
    if (!first || !last || Math.abs(first.top - last.top) > 2) continue;
    if (last.left < first.left) turned.push(`${node.parentElement.outerHTML.slice(0, 200)}: ${node.data.slice(0, 80)}`);
  }
  return turned;
}
