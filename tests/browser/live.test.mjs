// What people do on the dashboard, and what happens before their eyes while they look.

import assert from 'node:assert/strict';
import { rm } from 'node:fs/promises';
import { after, before, describe, test } from 'node:test';

import { guardedPage, launch, makeRoot, serve, showsFocus, signIn } from './harness.mjs';
import { calls, openAutomation, openOverview, openRun, row, runRow, runStatus } from './pages.mjs';

/** Goes on when its `gate` is cancelled, so that a test decides how far it is. */
const STEPS = `export default async ({ ctx, log, input }) => {
  for (const step of ['one', 'two', 'three']) {
    await Promise.all([ctx.tool('centraid_describe', {}), ctx.tool('centraid_describe', { app: 'bookshelf' })]);
    log.info('did ' + step, { step });
    await ctx.invoke('gate', { input: step }).catch(() => {});
  }
  return { summary: 'three steps for ' + (input?.who ?? 'nobody'), output: { steps: 3 } };
};
`;
const FAILS = `const PRICES = { bolt: 12 };

export default async ({ log }) => {
  log.error('about to fail');
  priceOf('nut');
};

function priceOf(name) {
  if (!(name in PRICES)) throw new Error('no price for ' + name);
  return PRICES[name];
}
`;

describe('the dashboard', { timeout: 300_000 }, () => {
  let served;
  let chromium;

  before(async () => {
    const root = await makeRoot();
    await root.automation('auto.test/steps', { name: 'Steps', apps: ['bookshelf'] }, STEPS);
    await root.automation('auto.test/gate', {}, 'export default () => new Promise((done) => setTimeout(done, 1e8));');
    await root.automation('auto.test/fails', { name: 'Fails' }, FAILS);
    await root.automation(
      'auto.test/quick',
      {},
      "export default ({ input }) => ({ summary: 'got ' + JSON.stringify(input), output: input });",
    );
    await root.automation(
      'auto.test/switched',
      { triggers: [{ kind: 'cron', expr: '0 8 1 1 *' }] },
      'export default () => {};',
    );
    await root.automation('auto.test/edited', {}, 'export default () => {};');
    await root.automation(
      'auto.test/hooked',
      { triggers: [{ kind: 'webhook', pending: true }] },
      'export default () => {};',
    );
    served = await serve(root);
    chromium = await launch();
  });
  after(async () => {
    await chromium?.close();
    await served?.stop();
  });

  /** Lets a run of `steps` take its next step. */
  async function openGate() {
    const gate = (await served.runs()).find((run) => run.automationId === 'gate' && run.status === 'running');
    const { status } = await served.api('POST', `/v1/runs/${gate.runId}/cancel`);
    assert.equal(status, 202);
  }

  /** Fails when the page was loaded anew since. */
  async function marked(page) {
    await page.evaluate(() => (globalThis.mark = 'the same page'));
    return async () =>
      assert.equal(await page.evaluate(() => globalThis.mark), 'the same page', 'nothing was reloaded');
  }

  test('Run now shows the trace growing, and its end', async (t) => {
    const page = await signIn(t, chromium, served);
    const unchanged = await marked(page);
    await row(page, 'auto.test/steps').getByRole('link', { name: 'Steps' }).click();
    await page.getByTestId('run-now').click();
    await page.getByTestId('run-input').fill('{ "who": "me", }');
    await page.getByText(/line 1,? column \d+/).waitFor();
    assert.ok(await page.getByTestId('run-start').isDisabled(), 'no run of what is no JSON');
    await page.getByTestId('run-input').fill('{ "who": "me" }');
    await page.getByTestId('run-start').click();

    await runStatus(page, 'running').waitFor();
    for (const [at, step] of ['one', 'two', 'three'].entries()) {
      const gate = calls(page).nth(3 * at + 2);
      await gate.and(page.locator('[data-kind="invoke"][data-status="running"]')).waitFor();
      assert.equal(await calls(page).count(), 3 * (at + 1));
      assert.equal(
        await page.getByTestId('trace-node').and(page.locator('[data-kind="tool"][data-status="ok"]')).count(),
        2 * (at + 1),
      );
      await page.getByTestId('log-line').getByText(`did ${step}`).waitFor();
      await runStatus(page, 'running').waitFor();
      await openGate();
      await gate.and(page.locator('[data-status="error"]')).waitFor();
    }
    await runStatus(page, 'ok').waitFor();
    await page.getByTestId('run-summary').getByText('three steps for me').waitFor();
    await page.getByTestId('run-output').getByText('"steps": 3').waitFor();
    await page.getByTestId('run-input-value').getByText('"who": "me"').waitFor();
    await unchanged();

    // The same two calls side by side, and each with what was asked and answered.
    assert.deepEqual(await calls(page).evaluateAll((nodes) => nodes.slice(0, 3).map((node) => node.dataset.batch)), [
      'first',
      'last',
      '',
    ]);
    await calls(page).nth(1).getByRole('button', { name: 'centraid_describe' }).click();
    await calls(page).nth(1).getByLabel('request').getByText('"bookshelf"').waitFor();
    await calls(page).nth(1).getByLabel('response').getByText('"queries"').waitFor();

    // From the invoked run back to the one that invoked it.
    await calls(page).nth(2).locator('.node-head').first().click();
    await calls(page).nth(2).getByRole('link', { name: 'open the invoked run' }).click();
    await runStatus(page, 'cancelled').waitFor();
    await page.locator('.facts div', { hasText: 'Parent' }).getByRole('link').click();
    await runStatus(page, 'ok').waitFor();
  });

  test('a failed run shows its error and the line that threw it', async (t) => {
    const { runId } = await served.run('auto.test/fails');
    const page = await signIn(t, chromium, served);
    await openOverview(page, served);
    await row(page, 'auto.test/fails').getByText('no price for nut').waitFor();
    await openRun(page, served, runId);
    await runStatus(page, 'error').waitFor();
    const told = await page.getByTestId('run-error').textContent();
    assert.match(told, /no price for nut/);
    assert.match(told, /auto\.test\/fails\/handler\.js:9:\d+/);
    const marked = page.locator('.error-panel .line.marked');
    await marked.getByText("throw new Error('no price for ' + name)").waitFor();
    assert.equal(await marked.getAttribute('data-n'), '9');
    await page.locator('.log .l-error').getByText('about to fail').waitFor();

    // A handler that was edited since may have another line there.
    await served.root.write('auto.test/automations/fails/handler.js', `// One more line.\n${FAILS}`);
    await page.reload();
    await page.getByTestId('handler-edited').waitFor();
  });

  test('a run is replayed and cancelled', async (t) => {
    const first = await served.run('auto.test/quick', { n: 12345678901 });
    const page = await signIn(t, chromium, served);
    await openRun(page, served, first.runId);
    await page.getByTestId('replay-run').click();
    await page.locator('.facts div', { hasText: 'Replay of' }).waitFor();
    await runStatus(page, 'ok').waitFor();
    await page.getByTestId('run-summary').getByText('got {"n":12345678901}').waitFor();

    const parked = await served.start('auto.test/gate');
    await openRun(page, served, parked);
    await page.getByTestId('cancel-run').click();
    await runStatus(page, 'cancelled').waitFor();
    await page.getByTestId('cancel-run').waitFor({ state: 'hidden' });
  });

  test('an automation is switched off and on, on disk', async (t) => {
    const page = await signIn(t, chromium, served);
    const enabled = async () =>
      JSON.parse(await served.root.read('auto.test/automations/switched/automation.json')).enabled;
    await openAutomation(page, served, 'auto.test/switched');
    await page.getByTestId('trigger').getByText('Next', { exact: false }).first().waitFor();
    await page.getByTestId('toggle-enabled').and(page.locator('[data-enabled="true"]')).click();
    await page.getByTestId('toggle-enabled').and(page.locator('[data-enabled="false"]')).waitFor();
    await page.locator('.head .st-disabled').waitFor();
    assert.equal(await enabled(), false);
    await page.getByTestId('trigger').getByText('it does not fire', { exact: false }).waitFor();
    await page.getByTestId('toggle-enabled').click();
    await page.locator('.head .st-enabled').waitFor();
    assert.notEqual(await enabled(), false);
  });

  test('a manifest that breaks shows where, and that it is whole again', async (t) => {
    const page = await signIn(t, chromium, served);
    await openAutomation(page, served, 'auto.test/edited');
    const unchanged = await marked(page);
    const whole = await served.root.read('auto.test/automations/edited/automation.json');
    await served.root.write('auto.test/automations/edited/automation.json', '{\n  "name": "edited",\n  "prompt": }\n');
    const problem = page.getByTestId('problem');
    await problem.getByText('auto.test/automations/edited/automation.json:3:13').waitFor();
    assert.equal(await problem.getAttribute('data-code'), 'invalid_json');
    await page.locator('.head .st-invalid').waitFor();
    await page.getByTestId('tab-manifest').click();
    await page.locator('.line.marked[data-n="3"]').getByText('"prompt": }').waitFor();

    const overview = await page.context().newPage();
    await overview.goto(`${served.admin}/#/`);
    await row(overview, 'auto.test/edited').and(overview.locator('[data-state="invalid"]')).waitFor();
    await overview.getByRole('link', { name: 'auto.test/automations/edited/automation.json:3:13' }).waitFor();

    await served.root.write('auto.test/automations/edited/automation.json', whole);
    await problem.waitFor({ state: 'hidden' });
    await page.locator('.head .st-enabled').waitFor();
    await row(overview, 'auto.test/edited').and(overview.locator('[data-state="enabled"]')).waitFor();
    await unchanged();
  });

  test('a folder that is dropped on disk shows up, fires, and goes, without a reload', async (t) => {
    const page = await signIn(t, chromium, served);
    const unchanged = await marked(page);
    await row(page, 'auto.test/quick').waitFor();
    await served.root.automation(
      'auto.dropped/new',
      { name: 'Just dropped' },
      "export default () => ({ summary: 'ran at once' });",
    );
    await row(page, 'auto.dropped/new').getByText('Just dropped').waitFor();
    await served.run('auto.dropped/new');
    await row(page, 'auto.dropped/new').getByText('ran at once').waitFor();
    await served.root.automation('auto.dropped/new', { name: 'Renamed' }, 'export default () => {};');
    await row(page, 'auto.dropped/new').getByText('Renamed').waitFor();
    await rm(served.root.join('auto.dropped'), { recursive: true });
    await row(page, 'auto.dropped/new').waitFor({ state: 'detached' });
    await unchanged();
  });

  test('webhook credentials are minted and shown once', async (t) => {
    const page = await signIn(t, chromium, served);
    await openAutomation(page, served, 'auto.test/hooked');
    await page.getByTestId('webhook-provision').click();
    const secret = await page.getByTestId('webhook-secret').textContent();
    const url = await page.getByTestId('webhook-url').textContent();
    assert.match(secret, /^[0-9a-f]{48}$/);
    assert.match(url, /\/_centraid-hook\/[0-9a-f]{24}$/);
    await page.getByTestId('webhook-secret-dialog').getByRole('button', { name: 'I have kept it' }).click();
    await page.locator('[data-testid="trigger"][data-webhook="open"]').waitFor();
    const manifest = await served.root.read('auto.test/automations/hooked/automation.json');
    assert.ok(!manifest.includes(secret), 'only its hash is written');
    assert.ok(manifest.includes('"secretHash"'));
    await page.getByTestId('tab-manifest').click();
    await page.locator('#file').getByText('secretHash').waitFor();
    assert.ok(!(await page.content()).includes(secret), 'nor does the page keep it');

    await page.getByTestId('webhook-rotate').click();
    await page.getByTestId('confirm').click();
    const second = await page.getByTestId('webhook-secret').textContent();
    assert.notEqual(second, secret);
  });

  test('everything is reached by the keyboard alone', async (t) => {
    const page = await signIn(t, chromium, served);
    const { keyboard } = page;
    const tabTo = async (selector) => {
      for (let presses = 0; presses < 60; presses += 1) {
        await keyboard.press('Tab');
        if (await page.evaluate((selector) => document.activeElement.matches(selector), selector)) return;
      }
      assert.fail(`Tab does not reach ${selector}`);
    };
    await keyboard.press('Tab');
    assert.equal(await page.evaluate(() => document.activeElement.textContent), 'Skip to the content');
    await keyboard.press('j');
    await page.locator('[data-testid="overview-row"]').first().locator('a:focus').waitFor();
    await keyboard.press('j');
    await page.locator('[data-testid="overview-row"]').nth(1).locator('a:focus').waitFor();
    await keyboard.press('k');
    await page.locator('[data-testid="overview-row"]').first().locator('a:focus').waitFor();
    await keyboard.press('/');
    await keyboard.type('quick');
    await row(page, 'auto.test/steps').waitFor({ state: 'detached' });
    for (const key of ['Enter', 'ArrowDown']) {
      await keyboard.press(key);
      await page.getByTestId('overview-row').first().locator('a:focus').waitFor();
      await keyboard.press('/');
      await page.locator('[data-testid="search"]:focus').waitFor();
    }
    await tabTo('[data-handle="auto.test/quick"] a');
    assert.ok(await showsFocus(page), 'the row shows its focus');
    await keyboard.press('Enter');
    await page.locator('.page.automation .crumbs', { hasText: 'Automations/auto.test/quick' }).waitFor();
    await page.locator('h1:focus').waitFor();
    await keyboard.press('r');
    await page.locator('[data-testid="run-input"]:focus').waitFor();
    await keyboard.type('{"by":"keyboard"}');
    await keyboard.press('Control+Enter');
    await runStatus(page, 'ok').waitFor();
    await page.getByTestId('run-summary').getByText('got {"by":"keyboard"}').waitFor();

    // By Tab alone: every stop shows its focus, and none is a trap.
    const stops = new Set();
    for (let presses = 0; presses < 40; presses += 1) {
      await keyboard.press('Tab');
      const stop = await page.evaluate(() =>
        document.activeElement === document.body ? 'body' : document.activeElement.outerHTML,
      );
      if (stop === 'body' || stops.has(stop)) break;
      stops.add(stop);
      assert.ok(await showsFocus(page), `no focus is seen on ${stop}`);
    }
    assert.ok(
      [...stops].some((stop) => stop.includes('replay-run')),
      'Replay is reached',
    );

    await keyboard.press('g');
    await page.getByTestId('search').waitFor();
    await keyboard.press('?');
    await page.getByTestId('help-dialog').waitFor();
    await keyboard.press('Escape');
    await page.getByTestId('help-dialog').waitFor({ state: 'detached' });
  });

  test('the list of runs is filtered and grows', async (t) => {
    const page = await signIn(t, chromium, served);
    await page.getByTestId('nav-runs').click();
    const { runId } = await served.run('auto.test/quick', 'seen at once');
    await runRow(page, runId).getByText('got "seen at once"').waitFor();
    await page.getByTestId('runs-status').selectOption('error');
    await runRow(page, runId).waitFor({ state: 'detached' });
    await page.getByTestId('runs-status').selectOption('');
    await runRow(page, runId).waitFor();
  });

  test('what happens while a page opens is not missed', async (t) => {
    const page = await signIn(t, chromium, served);
    const places = [
      ['#/runs', (told) => page.getByTestId('run-row').getByText(told)],
      ['#/a/auto.test/quick', (told) => page.getByTestId('run-row').getByText(told)],
      ['#/', (told) => row(page, 'auto.test/quick').getByText(told)],
    ];
    for (const [at, [place, telling]] of places.entries()) {
      // The page has read what it shows, and is about to listen.
      const between = async (route) => {
        await served.run('auto.test/quick', `in between ${at}`);
        await route.continue();
      };
      await page.route('**/v1/events', between, { times: 1 });
      await page.goto(`${served.admin}/${place}`);
      await telling(`in between ${at}`).waitFor();
    }
  });

  test('nobody gets in without a link, and a link works once', async (t) => {
    const refused = (text) => text.includes('401');
    const page = await guardedPage(t, chromium, [served.admin], { allow: refused });
    assert.equal((await page.goto(`${served.admin}/`)).status(), 401);
    await page.getByText('dirigent dashboard').waitFor();
    const link = await served.loginLink();
    await page.goto(link);
    await page.getByTestId('search').waitFor();
    assert.equal(new URL(page.url()).search, '', 'the code does not stay in the address');
    const other = await guardedPage(t, chromium, [served.admin], { allow: refused });
    assert.equal((await other.goto(link)).status(), 401);
    await other.getByText('does not work any more').waitFor();
  });

  test('a session that ended says so', async (t) => {
    const page = await signIn(t, chromium, served, { allow: (text) => text.includes('401') });
    await page.context().clearCookies();
    await page.getByTestId('nav-runs').click();
    await page.getByTestId('session-ended').getByText('dirigent dashboard').waitFor();
  });
});
