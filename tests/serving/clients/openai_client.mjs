// The official JavaScript client against a running gateway: one JSON object with what each call gave, on stdout.
// node openai_client.mjs OPTIONS, where OPTIONS is JSON: url, key, poor (a key whose budget is used up), tools.

import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const options = JSON.parse(process.argv[2]);
// The package lies where the test installed it, which is not beside this file.
const found = createRequire(pathToFileURL(`${options.packages}/`)).resolve("openai");
const { default: OpenAI } = await import(pathToFileURL(found));

const client = (apiKey = options.key) => new OpenAI({ baseURL: options.url, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "1 + 2?" }];
const chat = { model: "m", messages };
const tools = [
  {
    type: "function",
    function: { name: "add", parameters: { type: "object", properties: { a: { type: "number" } } } },
  },
];

async function text(stream) {
  let said = "";
  for await (const part of stream) said += part.choices[0]?.delta.content ?? "";
  return said;
}

async function error(promise) {
  try {
    const answer = await promise;
    if (answer?.[Symbol.asyncIterator]) await text(answer);
    return { none: true };
  } catch (problem) {
    return {
      kind: problem.constructor.name,
      status: problem.status ?? null,
      code: problem.code ?? null,
      type: problem.type ?? null,
      id: problem.requestID ?? null,
      retry: problem.headers?.get("retry-after") ?? null,
    };
  }
}

const calls = {
  async whole(openai) {
    const { data, request_id: id } = await openai.chat.completions.create(chat).withResponse();
    return { text: data.choices[0].message.content, usage: data.usage.total_tokens, id: Boolean(id) };
  },
  async text(openai) {
    return (await openai.completions.create({ model: "m", prompt: "once" })).choices[0].text;
  },
  async stream(openai) {
    return await text(await openai.chat.completions.create({ ...chat, stream: true }));
  },
  async usage(openai) {
    let last;
    const stream = await openai.chat.completions.create({
      ...chat,
      stream: true,
      stream_options: { include_usage: true },
    });
    for await (const part of stream) last = part;
    return last.usage.completion_tokens;
  },
  async helper(openai) {
    const stream = openai.chat.completions.stream(chat);
    return (await stream.finalChatCompletion()).choices[0].message.content;
  },
  async tools(openai) {
    const answer = await openai.chat.completions.create({ ...chat, tools });
    let streamed = "";
    for await (const part of await openai.chat.completions.create({ ...chat, tools, stream: true }))
      for (const call of part.choices[0]?.delta.tool_calls ?? []) streamed += call.function?.arguments ?? "";
    const call = answer.choices[0].message.tool_calls[0].function;
    return { name: call.name, whole: JSON.parse(call.arguments), streamed: JSON.parse(streamed) };
  },
  async json(openai) {
    const answer = await openai.chat.completions.create({ ...chat, response_format: { type: "json_object" } });
    return JSON.parse(answer.choices[0].message.content);
  },
  async models(openai) {
    const names = [];
    for await (const model of openai.models.list()) names.push(model.id);
    return { names, owner: (await openai.models.retrieve("m")).owned_by };
  },
  missing: (openai) => error(openai.chat.completions.create({ ...chat, model: "gpt-5" })),
  bad: (openai) => error(openai.chat.completions.create({ ...chat, messages: "hi" })),
  wrong: () => error(client("ptk_wrong").chat.completions.create(chat)),
  poor: () => error(client(options.poor).chat.completions.create(chat)),
  limited: (openai) => error(openai.chat.completions.create({ ...chat, mock: { status: 429 } })),
  broken: (openai) => error(openai.chat.completions.create({ ...chat, mock: { cut: "at once" } })),
  cut: (openai) => error(openai.chat.completions.create({ ...chat, stream: true, mock: { cut: "in body" } })),
  async abort(openai) {
    const slow = { ...chat, stream: true, mock: { chunks: 11, gap: 0.2, times: 5 } };
    const { data: stream, request_id: id } = await openai.chat.completions
      .create(slow, { headers: { "x-request-id": "left-in-the-middle" } })
      .withResponse();
    for await (const part of stream) if (part.choices[0].delta.content) break;
    return id;
  },
  async signal(openai) {
    const leaving = new AbortController();
    const stopped = error(
      openai.chat.completions.create(
        { ...chat, mock: { delay: 30 } },
        { signal: leaving.signal, headers: { "x-request-id": "left-while-waiting" } },
      ),
    );
    setTimeout(() => leaving.abort(), 200);
    return (await stopped).kind;
  },
};

const answers = {};
for (const [name, call] of Object.entries(calls)) answers[name] = await call(client());
console.log(JSON.stringify(answers));
