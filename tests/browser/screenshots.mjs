// Makes the README's pictures of the dashboard: serves a copy of the example apps and one more, lets some runs happen,
// and writes docs/images/{overview,automation,run}[-dark].png.
//
//   cargo build && npm --prefix tests/browser ci && npm --prefix tests/browser run screenshots

import { mkdir } from 'node:fs/promises';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import { launch, makeRoot, serve } from './harness.mjs';
import { calls, openAutomation, openOverview, openRun, row, runRow } from './pages.mjs';

const TO = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../../docs/images');
const SIZE = { width: 1280, height: 800 };

const BOOKS = [
  ['The Left Hand of Darkness', 'Ursula K. Le Guin'],
  ['Invisible Cities', 'Italo Calvino'],
  ['The Periodic Table', 'Primo Levi'],
  ['A Field Guide to Getting Lost', 'Rebecca Solnit'],
];

const ANNUAL = `/** @type {import('../../../../../runtime-js/ctx').Handler} */
export default async ({ ctx, log }) => {
  const app = 'bookshelf';
  const [books, digests] = await Promise.all([
    ctx.tool('centraid_read', { app, query: 'books', input: { shelf: 'all' } }),
    ctx.tool('centraid_read', { app, query: 'digests', input: {} }),
  ]);
  log.info('read the shelves', { books: books.length, digests: digests.length });
  const text = books.map(({ title, author }) => title + ' by ' + author).join('. ');
  const [, proof] = await Promise.all([
    ctx.invoke('typeset', { input: { text } }),
    ctx.invoke('proof-read', { input: { text } }),
  ]);
  log.info('proofs are back', proof.output);
  const sent = await ctx.invoke('print', { input: { copies: 40 } });
  return { summary: \`\${books.length} books, \${sent.output.copies} copies\`, output: sent.output };
};
`;
const takes = (ms, then) => `export default async ({ ctx, input }) => {
  await new Promise((done) => setTimeout(done, ${ms}));
  ${then}
};
`;

async function apps() {
  const root = await makeRoot();
  const annual = {
    name: 'Annual of the shelf',
    description: 'Collects the year in books, has it set and proof-read at the same time, and sends it to print.',
    prompt: 'At the end of the year, make a booklet of what I read and have it printed.',
    triggers: [{ kind: 'cron', expr: '0 9 20 DEC *', tz: 'Europe/Berlin' }],
    apps: ['bookshelf'],
  };
  await root.automation('auto.press/annual', annual, ANNUAL);
  await root.automation(
    'auto.press/typeset',
    { name: 'Typeset' },
    takes(700, "return { summary: '12 pages', output: { pages: 12 } };"),
  );
  const proof =
    "const { output } = await ctx.invoke('auto.editor/review', { input });\n" +
    '  await new Promise((done) => setTimeout(done, 250));\n' +
    "  return { summary: 'fine', output };";
  await root.automation('auto.press/proof-read', { name: 'Proof-read' }, takes(200, proof));
  await root.automation('auto.press/print', { name: 'Print' }, takes(1e8, 'return { output: input };'));
  await root.automation(
    'auto.press/reprint',
    { name: 'Reprint', enabled: false, triggers: [{ kind: 'cron', expr: '0 7 1 * *' }] },
    'export default () => {};',
  );
  const wrong = { name: 'Hello', triggers: [{ kind: 'cron', expr: '99 * * * *' }] };
  await root.automation('auto.mine/hello', wrong, "export default () => ({ summary: 'hello' });");
  return root;
}

async function letRunsHappen(served) {
  for (const [title, author] of BOOKS) await served.run('bookshelf/add-from-web', { title, author });
  for (let n = 0; n < 3; n += 1) await served.run('bookshelf/weekly-digest');
  for (let n = 0; n < 12; n += 1) await served.run('auto.heartbeat/beat');
  for (let n = 0; n < 9; n += 1) await served.run('auto.editor/review', n === 4 ? { text: 7 } : undefined);
  for (let n = 0; n < 4; n += 1) await served.run('auto.almanac/moon');
  // Down at every odd try.
  for (let n = 0; n < 11; n += 1) await served.run('auto.supplier/fetch-prices');
}

const served = await serve(await apps());
const browser = await launch();
try {
  await letRunsHappen(served);
  await mkdir(TO, { recursive: true });
  const running = await served.start('auto.press/annual');
  for (const colorScheme of ['light', 'dark']) {
    const context = await browser.newContext({ viewport: SIZE, colorScheme, reducedMotion: 'reduce' });
    const page = await context.newPage();
    const take = async (name) => {
      await page.getByTestId('live-state').getByText('Live', { exact: true }).waitFor();
      // Where the pointer is, something may look hovered.
      await page.mouse.move(0, SIZE.height - 1);
      const file = path.join(TO, `${name}${colorScheme === 'dark' ? '-dark' : ''}.png`);
      await page.screenshot({ path: file });
      console.log(file);
    };
    await page.goto(await served.loginLink());
    await openRun(page, served, running);
    await calls(page).nth(4).and(page.locator('[data-status="running"]')).waitFor();
    await page.locator('.node-child').getByText('auto.editor/review').waitFor();
    await page.locator('.aside-list').getByText('auto.press/print').waitFor();
    await take('run');
    await openOverview(page, served);
    await row(page, 'auto.heartbeat/beat').waitFor();
    await take('overview');
    await openAutomation(page, served, 'auto.supplier/fetch-prices');
    await page.getByTestId('run-row').nth(10).waitFor();
    await take('automation');
    await context.close();
  }
} finally {
  await browser.close();
  await served.stop();
}
