// What the pages say in figures: tokens beside their estimate, the time axis of a trace; and what they say of what is
// not known.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { after, before, describe, test } from 'node:test';

import { launch, makeRoot, seriousFindings, serve, signIn } from './harness.mjs';
import { calls, openAutomation, openRun, row } from './pages.mjs';

/** A model that reads 412 tokens and writes 37 at every call. */
async function model() {
  const answer = {
    id: 'c',
    object: 'chat.completion',
    created: 0,
    model: 'm-1',
    choices: [{ index: 0, finish_reason: 'stop', message: { role: 'assistant', content: 'Yes.' } }],
    usage: { prompt_tokens: 412, completion_tokens: 37, total_tokens: 449 },
  };
  const server = createServer((request, response) => {
    request.resume().on('end', () => {
      response.setHeader('content-type', 'application/json');
      response.end(JSON.stringify(answer));
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return server;
}

const ASKS = `export default async ({ ctx, input }) => {
  for (let n = 0; n < (input ?? 1); n++) await ctx.agent({ prompt: 'Is it so?' });
};
`;

describe('figures', { timeout: 300_000 }, () => {
  let served;
  let chromium;
  let asked;

  before(async () => {
    asked = await model();
    const root = await makeRoot();
    // Any variable that is set will do for a key.
    const settings = `base_url = "http://127.0.0.1:${asked.address().port}"\napi_key_env = "PATH"\n`;
    await root.write('dirigent.toml', `[models.local]\n${settings}`);
    const requires = { model: 'local/m-1' };
    const costEstimate = { model: 'local/m-1', tokensPerFire: 500 };
    await root.automation('auto.mind/both', { requires, costEstimate }, ASKS);
    await root.automation('auto.mind/estimated', { requires, costEstimate }, ASKS);
    await root.automation('auto.mind/measured', { requires }, ASKS);
    const steps = `export default async ({ ctx }) => {
      await Promise.all([ctx.tool('centraid_describe', {}), ctx.tool('centraid_describe', {})]);
      await ctx.invoke('quiet');
      await ctx.tool('centraid_describe', {});
    };`;
    await root.automation('auto.mind/steps', {}, steps);
    await root.automation('auto.mind/quiet', {}, 'export default () => {};');
    await root.manifest('auto.broken/manifest', { triggers: [{ kind: 'cron', expr: '99 * * * *' }] });
    served = await serve(root);
    chromium = await launch();
  });
  after(async () => {
    await chromium?.close();
    await served?.stop();
    asked?.close();
  });

  test('measured tokens stand beside the estimate', async (t) => {
    const page = await signIn(t, chromium, served);
    const figure = (name) => page.getByTestId(`cost-${name}`);
    await openAutomation(page, served, 'auto.mind/both');
    await figure('window').getByText('It has not run yet.').waitFor();
    await served.run('auto.mind/both', 1);
    await figure('measured').getByText('449', { exact: true }).waitFor();
    await page.getByText('10 % under the estimate').waitFor();
    await served.run('auto.mind/both', 2);
    await figure('measured').getByText('674', { exact: true }).waitFor();
    await figure('estimated').getByText('500', { exact: true }).waitFor();
    await page.getByText('35 % over the estimate').waitFor();
    await figure('window').getByText('Over the last 2 runs: 3 calls, 1,236 tokens in, 111 out.').waitFor();
    await page.getByTestId('cost').getByText('local/m-1').waitFor();
    const measured = await figure('measured').boundingBox();
    const estimated = await figure('estimated').boundingBox();
    assert.ok(measured.y === estimated.y && measured.x + measured.width <= estimated.x, 'side by side');
    assert.deepEqual(await seriousFindings(page), []);

    await openAutomation(page, served, 'auto.mind/estimated');
    assert.equal(await figure('measured').textContent(), '–none yet');
    assert.equal(await figure('estimated').textContent(), '500 tokens a fire');
    await served.run('auto.mind/measured');
    await openAutomation(page, served, 'auto.mind/measured');
    assert.equal(await figure('measured').textContent(), '449 tokens a run');
    assert.equal(await figure('estimated').textContent(), '–not given');
    await openAutomation(page, served, 'auto.mind/quiet');
    await page.getByTestId('cost').waitFor({ state: 'hidden' });
  });

  test('the time axis has round figures, its lines go through, and the calls stand in one column', async (t) => {
    const { runId } = await served.run('auto.mind/steps');
    const page = await signIn(t, chromium, served);
    await openRun(page, served, runId);
    const none = page.locator('.no-calls');
    await none.getByRole('link', { name: 'open the run' }).waitFor();
    const ticks = await page.locator('.axis span').allTextContents();
    assert.equal(ticks[0], '0');
    assert.ok(ticks.length >= 2, ticks.join());
    const steps = ticks.slice(1).map((tick) => parseFloat(tick) * (tick.endsWith('ms') ? 1 : 1000));
    assert.ok(steps.every((at, n) => Math.abs(at - (n + 1) * steps[0]) < 1e-6), ticks.join());
    assert.match(String(steps[0]), /^[125]0*$/, ticks.join());

    const columns = async (found) => {
      const left = (all) => all.map((one) => Math.round(one.getBoundingClientRect().left));
      return new Set(await found.evaluateAll(left)).size;
    };
    assert.equal(await columns(calls(page).locator('.node-row .icon:not(.i-chevron)')), 1, 'in a batch or not');
    assert.equal(await none.locator('.lane').count(), 1);
    assert.equal(await columns(page.locator('.lane')), 1);
  });

  test('what is not known is not made up, and hints show code as code', async (t) => {
    const page = await signIn(t, chromium, served);
    const triggers = (handle) => row(page, handle).locator('.c-triggers').textContent();
    await row(page, 'auto.broken/manifest').waitFor();
    assert.equal(await triggers('auto.broken/manifest'), '– no triggers are known');
    assert.equal(await triggers('auto.mind/quiet'), 'By hand or invoked');
    const hint = page.getByTestId('problem').locator('.hint').first();
    await hint.locator('code', { hasText: /^0$/ }).waitFor();
    assert.ok(!(await hint.textContent()).includes('`'));
    await openAutomation(page, served, 'auto.broken/manifest');
    await page.getByText('None are known until the manifest is valid.').waitFor();
  });
});
