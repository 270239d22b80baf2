// @ts-check

// One turn of the model that the manifest's `requires.model` names. With `json`, the answer validates against the
// schema, or the call rejects.

const schema = {
  type: 'object',
  properties: {
    title: { type: 'string' },
    points: { type: 'array', items: { type: 'string' } },
  },
  required: ['title', 'points'],
  additionalProperties: false,
};

/** @type {import('../ctx').Handler} */
export default async ({ ctx, log, input }) => {
  const text = typeof input === 'string' ? input : input?.text;
  if (!text) throw new Error('give a text to summarise: {"text": "…"}');

  const answer = await ctx.agent({
    prompt: `Summarise the following text in a title and at most five points.\n\n${text}`,
    json: schema,
  });
  log.info('summarised', { characters: text.length, points: answer.points.length });
  return { summary: answer.title, output: answer };
};
