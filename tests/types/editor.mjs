// What an editor shows of a scaffold at once: VS Code's services for JavaScript and for JSON, on the files as they are.
// The argument is the automation's folder.
import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import ts from 'typescript';
import json from 'vscode-json-languageservice';
import { TextDocument } from 'vscode-languageserver-textdocument';

const folder = process.argv[2];

/** The text with `|` taken out, and where it stood. */
const cursor = (text) => [text.replace('|', ''), text.indexOf('|')];

handler(join(folder, 'handler.js'));
await manifest(join(folder, 'automation.json'));

function handler(file) {
  const scaffold = readFileSync(file, 'utf8');
  let text = scaffold;
  let version = 0;
  const read = (name) => (name === file ? text : readFileSync(name, 'utf8'));
  const service = ts.createLanguageService({
    ...ts.sys,
    fileExists: existsSync,
    useCaseSensitiveFileNames: () => ts.sys.useCaseSensitiveFileNames,
    getScriptFileNames: () => [file],
    getScriptVersion: (name) => (name === file ? String(version) : '1'),
    getScriptSnapshot: (name) => (existsSync(name) ? ts.ScriptSnapshot.fromString(read(name)) : undefined),
    getCurrentDirectory: () => folder,
    // As VS Code takes a JavaScript file that no project file stands beside.
    getCompilationSettings: () => ({ allowJs: true, noEmit: true, target: ts.ScriptTarget.Latest }),
    getDefaultLibFileName: ts.getDefaultLibFilePath,
  });
  const open = (next) => ([text, version] = [next, version + 1]);
  const problems = (next) => {
    open(next);
    const found = [...service.getSyntacticDiagnostics(file), ...service.getSemanticDiagnostics(file)];
    return found.map(({ messageText }) => ts.flattenDiagnosticMessageText(messageText, ' '));
  };
  const offers = (line) => {
    const [next, at] = cursor(scaffold.replace('return {', `${line};\n  return {`));
    open(next);
    return service.getCompletionsAtPosition(file, at, {}).entries.map(({ name }) => name).sort();
  };
  assert.deepEqual(problems(scaffold), []);
  const members = ['abortSignal', 'agent', 'input', 'invoke', 'log', 'run', 'runs', 'state', 'tool'];
  assert.deepEqual(offers('ctx.|'), members);
  assert.deepEqual(offers('ctx.state.|'), ['del', 'delete', 'get', 'set']);
  assert.deepEqual(offers('ctx.run.trigger.|'), ['deliveryId', 'missed', 'origin', 'scheduledFor']);
  assert.deepEqual(offers('log.|'), ['error', 'info', 'warn']);
  const wrong = problems(scaffold.replace('return {', 'ctx.nope();\n  return {'));
  assert.deepEqual(wrong, ["Property 'nope' does not exist on type 'Ctx<any>'."]);
}

async function manifest(file) {
  const scaffold = readFileSync(file, 'utf8');
  const uri = pathToFileURL(file).toString();
  const service = json.getLanguageService({
    schemaRequestService: async (address) => readFileSync(fileURLToPath(address), 'utf8'),
    workspaceContext: { resolveRelativePath: (path, base) => new URL(path, base).toString() },
  });
  const open = (text) => {
    const document = TextDocument.create(uri, 'json', 1, text);
    return [document, service.parseJSONDocument(document)];
  };
  const problems = async (text) => (await service.doValidation(...open(text), {})).map(({ message }) => message);
  const withFields = (fields) => JSON.stringify({ ...JSON.parse(scaffold), ...fields }, null, 2);
  const offers = async (line) => {
    const [text, at] = cursor(scaffold.replace('"enabled"', `${line}\n  "enabled"`));
    const [document, parsed] = open(text);
    const { items } = await service.doComplete(document, document.positionAt(at), parsed);
    return items.map(({ label }) => label);
  };
  assert.deepEqual(await problems(scaffold), []);
  for (const [fields, message] of [
    [{ timeoutMs: 0 }, /below the minimum of 1/],
    [{ name: '' }, /shorter than the minimum length/],
    [{ catchUp: 'never' }, /Valid values: "skip", "once", "all"/],
    [{ triggers: [{ kind: 'cron' }] }, /Missing property "expr"/],
    [{ triggers: [{ kind: 'cron', expr: '@daily' }] }, /does not match the pattern/],
    [{ triggers: [{ kind: 'webhook' }] }, /Missing property "pending"/],
    [{ triggers: [1, 2].map(() => ({ kind: 'webhook', pending: true })) }, /too many items/],
    [{ outputSchema: { type: 'array' } }, /object/],
  ]) {
    const found = await problems(withFields(fields));
    assert.match(found.join('\n'), message, JSON.stringify(fields));
  }
  const fields = await offers('|');
  for (const name of ['requires', 'apps', 'outputSchema', 'onFailure', 'concurrency', 'timeoutMs', 'catchUp', 'retry']) {
    assert.ok(fields.includes(name), `${name} in ${fields}`);
  }
  assert.deepEqual(await offers('"catchUp": |,'), ['"skip"', '"once"', '"all"']);
  assert.deepEqual(await offers('"concurrency": { "mode": | },'), ['"single"', '"queued"', '"parallel"', '"restart"']);
}
