// @ts-check

// Runs other automations, side by side, and gathers what they return:
//   {"handles": ["other-automation", "another.app/its-automation"], "input": {"any": "json"}}
// A bare name is an automation of the same app.

/** @type {import('../ctx').Handler} */
export default async ({ ctx, log, input }) => {
  /** @type {string[]} */
  const handles = input?.handles ?? [];
  if (handles.length === 0) throw new Error('name the automations to run: {"handles": ["<id>", "<app>/<id>"]}');

  const settled = await Promise.allSettled(handles.map((handle) => ctx.invoke(handle, { input: input.input })));
  const results = settled.map((child, index) =>
    child.status === 'fulfilled'
      ? { handle: handles[index], ok: true, runId: child.value.childRunId, output: child.value.output ?? null }
      : { handle: handles[index], ok: false, error: String(child.reason?.message ?? child.reason) });

  const failed = results.filter((result) => !result.ok);
  for (const result of failed) log.warn(`${result.handle} failed`, { error: result.error });
  if (failed.length === results.length) throw new Error(`all ${failed.length} failed; the first: ${failed[0].error}`);
  return { summary: `${results.length - failed.length} of ${results.length} ok`, output: { results } };
};
