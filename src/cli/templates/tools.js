// @ts-check

// Looks at what this automation's app offers, then calls the query that the input names:
//   {"query": "open_items", "input": {"limit": 10}}
// With {"action": "…"} it calls an action instead.

/** @type {import('../ctx').Handler} */
export default async ({ ctx, log, input }) => {
  const app = ctx.run.appId;
  const offered = await ctx.tool('centraid_describe', { app });
  /** @param {{ name: string }[]} entries */
  const names = (entries) => entries.map((entry) => entry.name);
  log.info('the app offers', { queries: names(offered.queries), actions: names(offered.actions) });

  if (input?.action) {
    const done = await ctx.tool('centraid_write', { app, action: input.action, input: input.input ?? {} });
    return { summary: `${input.action} answered ${done.status ?? 200}`, output: { result: done.body ?? null } };
  }
  if (input?.query) {
    const rows = await ctx.tool('centraid_read', { app, query: input.query, input: input.input ?? {} });
    return { summary: `${input.query} answered`, output: { result: rows ?? null } };
  }
  return {
    summary: `${offered.queries.length} queries, ${offered.actions.length} actions`,
    output: { queries: names(offered.queries), actions: names(offered.actions) },
  };
};
