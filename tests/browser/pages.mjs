// Where things stand on the dashboard's pages, and how to get there.

/** An automation in the list. */
export const row = (page, handle) => page.locator(`[data-testid="overview-row"][data-handle="${handle}"]`);

/** A run in a list of runs. */
export const runRow = (page, run) => page.locator(`[data-testid="run-row"][data-run="${run}"]`);

export const runStatus = (page, status) => page.locator(`[data-testid="run-status"][data-status="${status}"]`);

/** The calls of the run that is shown, without those of the runs that it invoked. */
export const calls = (page) => page.locator('.trace-body > div > .lanes > [data-testid="trace-node"]');

export async function openOverview(page, served) {
  await page.goto(`${served.admin}/#/`);
  await page.getByTestId('search').waitFor();
}

export async function openAutomation(page, served, handle) {
  await page.goto(`${served.admin}/#/a/${handle}`);
  await page.locator('.page.automation .crumbs', { hasText: `Automations/${handle}` }).waitFor();
}

export async function openRun(page, served, run) {
  await page.goto(`${served.admin}/#/r/${run}`);
  await page.locator('.page.run .facts').getByText(run).waitFor();
}
