// What an automation's models cost: the tokens that its manifest estimates for a fire beside those that were counted.

import { h } from './dom.js';
import { number, plural } from './format.js';

/** Below this, a figure with a fraction would say more than it knows. */
const WHOLE_FROM = 10;

/** What stands in the section; null for an automation that neither estimates nor has asked a model of late. */
export function costFigures({ costEstimate: estimate, usage, recent }) {
  if (!estimate && !usage) return null;
  const over = estimate && usage && usage.tokensPerRun > estimate.tokensPerFire;
  return [
    h(
      'dl',
      { class: over ? 'cost is-over' : 'cost' },
      figure('Measured', usage?.tokensPerRun, 'a run', 'none yet', 'cost-measured'),
      figure('Estimated', estimate?.tokensPerFire, 'a fire', 'not given', 'cost-estimated'),
    ),
    estimate && usage && estimate.tokensPerFire > 0 ? h('p', { class: over ? 'warn-text' : 'faint' }, comparison(usage.tokensPerRun / estimate.tokensPerFire)) : null,
    h('p', { class: 'faint', 'data-testid': 'cost-window' }, usage ? windowWords(usage) : recent.length === 0 ? 'It has not run yet.' : 'Its last runs asked no model.'),
    modelRows(estimate, usage),
  ];
}

function figure(name, tokens, per, absent, testid) {
  const told = tokens === undefined ? [h('b', {}, '–'), absent] : [h('b', {}, rounded(tokens)), ` tokens ${per}`];
  return h('div', {}, h('dt', {}, name), h('dd', { 'data-testid': testid }, told));
}

const rounded = (tokens) => number(tokens < WHOLE_FROM ? Math.round(tokens * 10) / 10 : Math.round(tokens));

/** `ratio`: measured to estimated. */
function comparison(ratio) {
  if (ratio >= 2) return `${rounded(ratio)} times the estimate`;
  const percent = Math.round(ratio * 100);
  if (percent === 100) return 'as estimated';
  return percent > 100 ? `${percent - 100} % over the estimate` : `${100 - percent} % under the estimate`;
}

function windowWords({ runs, calls, inputTokens, outputTokens }) {
  const over = runs === 1 ? 'In the last run' : `Over the last ${number(runs)} runs`;
  return `${over}: ${plural(calls, 'call')}, ${number(inputTokens)} tokens in, ${number(outputTokens)} out.`;
}

function modelRows(estimate, usage) {
  const asked = usage?.models ?? [];
  const same = estimate && asked.length === 1 && asked[0] === estimate.model;
  const rows = [
    [asked.length > 0 ? 'Asked' : null, asked.flatMap((model, at) => [at > 0 ? ', ' : null, h('code', {}, model)])],
    [estimate && !same ? 'Estimated for' : null, h('code', {}, estimate?.model ?? '')],
  ].filter(([name]) => name);
  return rows.length === 0 ? null : h('dl', { class: 'facts' }, rows.map(([name, value]) => h('div', {}, h('dt', {}, name), h('dd', { class: 'break' }, value))));
}
