// @ts-check

/** @type {import('../ctx').Handler} */
export default async ({ ctx, log, input }) => {
  const runs = ((await ctx.state.get('runs')) ?? 0) + 1;
  await ctx.state.set('runs', runs);
  log.info('hello', { origin: ctx.run.trigger.origin, input: input ?? null });
  return { summary: `run number ${runs}`, output: { runs } };
};
