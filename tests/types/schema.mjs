// The manifest's JSON Schema in the hands of another validator, Ajv, beside `dirigent validate`: both accept and refuse
// the same texts. Arguments: the program, and an empty folder to write manifests to.
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import Ajv2020 from 'ajv/dist/2020.js';

const [program, folder] = process.argv.slice(2);
const accepts = new Ajv2020.default({ strict: false, validateFormats: false, logger: false }).compile(
  JSON.parse(execFileSync(program, ['schema'], { encoding: 'utf8' })),
);

const HASH = 'ab'.repeat(32);
const whole = (fields) => ({ name: 'n', prompt: 'p', generated: { by: 'b', at: 'a' }, ...fields });
const cron = (fields) => whole({ triggers: [{ kind: 'cron', expr: '* * * * *', ...fields }] });
const hook = (fields) => whole({ triggers: [{ kind: 'webhook', id: 'x', secretHash: HASH, ...fields }] });
const signed = (fields) => hook({ verify: { scheme: 'github', secretRef: 'env:A', ...fields } });

/** Every text field, and texts at the edge of what it may hold: letters are put before, into and behind each. */
const TEXTS = [
  [(name) => whole({ name }), 'n', ''],
  [(by) => whole({ generated: { by, at: 'a' } }), 'b', ''],
  [(model) => whole({ requires: { model } }), 'p/m', 'centraid-mock', 'centraid-mock/m', ''],
  [(tool) => whole({ requires: { tools: [tool] } }), 'a.b', ''],
  [(onFailure) => whole({ onFailure }), 'a', 'a/b', '.a/b', `${'a'.repeat(128)}/b`, 'a'.repeat(128)],
  [(id) => hook({ id }), 'a', '-', ''],
  [(secretHash) => hook({ secretHash }), HASH, `sha256:${HASH}`, HASH.slice(1)],
  [(secretRef) => signed({ secretRef }), 'env:A', 'env:', 'file:a', 'file:', 'file: '],
  [(header) => signed({ header }), 'X', '', 'x'.repeat(99), 'x'.repeat(100)],
  [(scheme) => signed({ scheme }), 'github'],
  [(expr) => cron({ expr }), '* * * * *', '1-5 * * * MON'],
  [(tz) => cron({ tz }), 'UTC', ''],
  [(kind) => whole({ triggers: [{ kind, expr: '* * * * *', pending: true }] }), 'cron', 'webhook'],
  [(keep) => whole({ history: { keep } }), 'all', 'errors'],
  [(mode) => whole({ concurrency: { mode } }), 'single'],
  [(type) => whole({ outputSchema: { type } }), 'object'],
  [(type) => whole({ outputSchema: { type: 'object', properties: { a: { type } } } }), 'string'],
  [(name) => whole({ outputSchema: { type: 'object', required: [name] } }), 'a', ''],
];
const LETTERS = ['', ...'aZ09/.-_*,:#@?( \t\n\r\0\x1f\x7f\x85\xa0é٣０ſ\u212a\u2028\u3000\ufeff', '💥'];

/** Every number field, in every way that a number can be written. */
const NUMBERS = [
  (n) => `"timeoutMs": ${n}`,
  (n) => `"retry": {"max": ${n}}`,
  (n) => `"retry": {"backoffMs": ${n}}`,
  (n) => `"concurrency": {"mode": "queued", "max": ${n}}`,
  (n) => `"history": {"keep": {"count": ${n}}}`,
  (n) => `"history": {"keep": {"days": ${n}}}`,
  (n) => `"costEstimate": {"model": "m", "tokensPerFire": ${n}}`,
];
const WRITTEN = `0 -0 0.0 1 -1 1.0 1.5 0.1e1 1e0 1E2 100 101 100.0 10000 10001 3600000 3600001 86400000 86400001 8.64e7
  9007199254740993 18446744073709551615 18446744073709551616 1e19 1e300 -1e300 5e-324 1e-400 "1" null true [] {}`;

/** Every field, and values of every type. */
const VALUES = [null, true, 5, 'x', [], {}, [[]], [{}], [null], [''], { type: 'object' }, { count: 1 }, { kind: 'cron' }];
const FIELDS = `name version description prompt enabled triggers trigger requires apps costEstimate outputSchema onFailure
  history generated concurrency timeoutMs catchUp retry $schema unheardOf`.split(/\s+/);

const manifests = [];
for (const [make, ...texts] of TEXTS) {
  for (const text of texts) {
    for (const letter of LETTERS) {
      for (const at of new Set([0, text.length >> 1, text.length])) {
        manifests.push(JSON.stringify(make(text.slice(0, at) + letter + text.slice(at))));
      }
    }
  }
}
for (const field of NUMBERS) {
  for (const number of WRITTEN.split(/\s+/)) manifests.push(JSON.stringify(whole()).replace(/}$/, `, ${field(number)}}`));
}
for (const field of FIELDS) {
  for (const value of VALUES) {
    manifests.push(JSON.stringify(whole({ [field]: value })));
    for (const inner of VALUES) manifests.push(JSON.stringify(whole({ [field]: [value, inner] })));
  }
  manifests.push(JSON.stringify(whole({ [field]: undefined })));
}

/** The rule that JSON Schema has no words for: a cron text that never matches. */
const isBeyond = ({ code, field, message }) =>
  code === 'invalid_trigger' && field.endsWith('.expr') && message.includes('can never match');

/** Cron texts: every word in every field, alone and as the end of a list or of a range. */
const WORDS = `0 1 7 8 12 13 23 24 31 32 59 60 007 jan DEC Febr sun Sat L 5W 1#2 */2 */0 ?/70 5/15 1-5/2 5-1 1-5/ 1--2 -1
  MON-FRI FRI-MON fri-Sun SUN-0 7-0 DEC-JAN jan-3 3-JAN 59-58 22-9 10-10 010-9 ** *-5`.split(/\s+/);
for (let field = 0; field < 5; field += 1) {
  for (const word of WORDS) {
    for (const text of [word, `1,${word}`, `${word},`, `2-${word}`]) {
      const words = ['*', '*', '*', '*', '*'];
      words[field] = text;
      manifests.push(JSON.stringify(cron({ expr: words.join(' ') })));
    }
  }
}
for (const tz of `Mars/X utc Z Zulu europe/berlin Europe/Berlin EST5EDT Etc/GMT+5 GMT+5 CET CEST`.split(' ')) {
  manifests.push(JSON.stringify(cron({ tz })));
}

const paths = manifests.map((text, index) => {
  const path = join(folder, `${index}.json`);
  writeFileSync(path, text);
  return path;
});
const errors = new Map(paths.map((path) => [path, []]));
for (let from = 0; from < paths.length; from += 500) {
  const args = ['--root', folder, '--json', 'validate', ...paths.slice(from, from + 500)];
  const { stdout } = spawnSync(program, args, { encoding: 'utf8', maxBuffer: 2 ** 28 });
  for (const problem of JSON.parse(stdout).problems) if (problem.severity === 'error') errors.get(problem.path).push(problem);
}
let good = 0;
paths.forEach((path, index) => {
  const found = errors.get(path);
  const told = found.filter((problem) => !isBeyond(problem));
  const accepted = accepts(JSON.parse(manifests[index]));
  // What only the validator can know, the schema may accept.
  if (found.length > 0 && told.length === 0) return;
  assert.equal(accepted, told.length === 0, `${manifests[index]}\n${JSON.stringify(accepts.errors ?? told)}`);
  good += accepted;
});
assert.ok(good > 500 && good < paths.length - 500, `${good} of ${paths.length}`);
