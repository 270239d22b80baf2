// An MCP client by the official TypeScript SDK, for tests: `node client.mjs stdio <command> <args…>`, or
// `node client.mjs http <url> <token>`. Reads one JSON line per request, `{ "method": "tools/call" | "tools/list" | …,
// "params": … }`, or `{ "method": "cancel" }` for the request before, and answers each with one JSON line.
import { createInterface } from 'node:readline';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';

const [kind, ...rest] = process.argv.slice(2);
const transport =
  kind === 'stdio'
    ? new StdioClientTransport({ command: rest[0], args: rest.slice(1), stderr: 'inherit' })
    : new StreamableHTTPClientTransport(new URL(rest[0]), {
        requestInit: { headers: { authorization: `Bearer ${rest[1]}` } },
      });
const client = new Client({ name: 'dirigent-tests', version: '1.0.0' });
const tell = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);

try {
  await client.connect(transport);
  tell({ server: client.getServerVersion(), instructions: client.getInstructions() });
} catch (error) {
  tell({ refused: error.message });
  process.exit(0);
}

let underWay;
for await (const line of createInterface({ input: process.stdin })) {
  const { method, params } = JSON.parse(line);
  if (method === 'cancel') {
    underWay?.abort('the test says so');
    continue;
  }
  underWay = new AbortController();
  const calls = {
    'tools/list': () => client.listTools(params),
    'tools/call': (options) => client.callTool(params, undefined, options),
    'resources/list': () => client.listResources(params),
    'resources/read': () => client.readResource(params),
  };
  calls[method]({ signal: underWay.signal, timeout: 120_000 }).then(
    (result) => tell({ result }),
    (error) => tell({ error: { code: error.code, message: error.message } }),
  );
}
await client.close();
