// Compares the speed and the memory of nextword and llama.cpp on this machine's CPU, with the same GGUF file, in
// alternating rounds.
//
//     npm install node-llama-cpp    # contains llama.cpp, compiled for the usual CPUs
//     node scripts/compare_llama_cpp_speed.mjs target/release/nextword MODEL.gguf
//
// Options: --rounds 5 --prompt 512 --tokens 64 --threads N. Run it in the folder where the package was installed.
//
// Each measurement is a process of its own, which loads the model, warms up, and times the prefill of a prompt or
// the decoding of single tokens. Medians over all rounds are printed, and the ratio is the median of the rounds'
// ratios. Memory is the peak of the resident memory, without that of Node before it loads the model. llama.cpp maps
// the file into memory, which counts as resident as far as it was read.

import { execFileSync } from "node:child_process";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { parseArgs } from "node:util";

const TASKS = ["prefill", "decode"];
const DECODE_PROMPT = 16; // As in `nextword bench decode`.

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    rounds: { type: "string", default: "5" },
    prompt: { type: "string", default: "512" },
    tokens: { type: "string", default: "64" },
    threads: { type: "string", default: String(availableParallelism()) },
    worker: { type: "string" },
  },
});

/** The token ids of a prompt: those of `nextword bench`. */
const promptIds = (length, vocabulary) => Array.from({ length }, (_, i) => (i * 7919) % vocabulary);

/** Measures llama.cpp in this process. */
async function measureLlamaCpp(task, path) {
  const module = join(process.cwd(), "node_modules/node-llama-cpp/dist/index.js");
  const { getLlama } = await import(pathToFileURL(module));
  const memoryBefore = process.memoryUsage.rss();
  const llama = await getLlama({
    gpu: false, build: "never", maxThreads: Number(options.threads), logLevel: "error",
  });
  const model = await llama.loadModel({ modelPath: path });
  const [prompt, tokens] = [Number(options.prompt), Number(options.tokens)];
  const context = await model.createContext({
    contextSize: task === "prefill" ? prompt + 8 : DECODE_PROMPT + tokens + 8,
    threads: Number(options.threads),
  });
  const sequence = context.getSequence();
  const vocabulary = model.fileInfo.metadata.tokenizer.ggml.tokens.length;
  const round = async () => {
    await sequence.clearHistory();
    let start = performance.now();
    if (task === "prefill") {
      await sequence.evaluateWithoutGeneratingNewTokens(promptIds(prompt, vocabulary));
      return prompt / (performance.now() - start);
    }
    let count = -1; // The first token is that of the prompt.
    const ids = promptIds(DECODE_PROMPT, vocabulary);
    for await (const _ of sequence.evaluate(ids, { temperature: 0, yieldEogToken: true })) {
      count += 1;
      if (count === 0) start = performance.now();
      if (count === tokens) break;
    }
    return count / (performance.now() - start);
  };
  await round();
  const perSecond = 1000 * (await round());
  const memory = 1024 * process.resourceUsage().maxRSS - memoryBefore;
  console.log(JSON.stringify({ perSecond, memory }));
  process.exit(0);
}

const run = (program, args, environment = {}) =>
  JSON.parse(execFileSync(program, args, {
    encoding: "utf8", stdio: ["ignore", "pipe", "inherit"], env: { ...process.env, ...environment },
  }).trim().split("\n").pop());

function nextword(program, task, path) {
  const length = task === "prefill" ? options.prompt : options.tokens;
  const args = ["bench", task, path, "--tokens", length, "--rounds", "1", "--json"];
  const result = run(program, args, { RAYON_NUM_THREADS: options.threads });
  return { perSecond: result.tokens_per_second, memory: result.peak_memory_bytes };
}

function llamaCpp(task, path) {
  const numbers = ["rounds", "prompt", "tokens", "threads"].flatMap((name) => [`--${name}`, options[name]]);
  return run(process.execPath, [fileURLToPath(import.meta.url), path, "--worker", task, ...numbers]);
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[sorted.length >> 1];
}

function compare(program, path) {
  console.log(`${path}: ${options.threads} threads, median of ${options.rounds} rounds`);
  for (const task of TASKS) {
    const [ours, theirs] = [[], []];
    for (let round = 0; round < Number(options.rounds); round += 1) {
      ours.push(nextword(program, task, path));
      theirs.push(llamaCpp(task, path));
    }
    const speed = (results) => median(results.map((result) => result.perSecond)).toFixed(1);
    const memory = (results) => Math.round(median(results.map((result) => result.memory)) / 2 ** 20);
    const ratio = median(ours.map((result, i) => result.perSecond / theirs[i].perSecond)).toFixed(2);
    console.log(
      `${task}: nextword ${speed(ours)}, llama.cpp ${speed(theirs)} tokens per second (ratio ${ratio}); ` +
        `peak memory ${memory(ours)} and ${memory(theirs)} MiB`,
    );
  }
}

if (options.worker) {
  await measureLlamaCpp(options.worker, positionals[0]);
} else if (positionals.length === 2) {
  compare(...positionals);
} else {
  console.error("usage: compare_llama_cpp_speed.mjs NEXTWORD MODEL.gguf");
  process.exit(2);
}
