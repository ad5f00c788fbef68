"""Load test of `nextword serve` with prompts that share a prefix: throughput of 16 clients and time to the first token.

    python scripts/prefix_load.py target/release/nextword MODEL [OPTION OF serve ...]

Starts the server with its default options and requires only Python on Linux. Each prompt has 32 tokens, 20 of
them shared by all, and each completion 64 tokens. Prints one line of JSON per measurement:

1. One client, then 16, each with one request at a time: tokens per second. The requests per second of 16
   clients are the capacity.
2. Requests that arrive at random (a Poisson process) at half of the capacity: the time from the arrival of a
   request to its first token.
3. A seeded completion alone and under that load must be the same text.
"""

import asyncio
import json
import random
import sys
import time

from load_test import Server, get, metric_sum, quantile, request

PROMPT, SHARED, TOKENS, CLIENTS, ARRIVALS = 32, 20, 64, 16, 120
SECONDS = 15  # duration of a throughput measurement


def completion(rng, seed):
    """Return a request; the ids are below 256, which every vocabulary of a real model has."""
    own = [rng.randrange(20, 256) for _ in range(PROMPT - SHARED)]
    return {
        "model": "m", "prompt": list(range(40, 40 + SHARED)) + own, "max_tokens": TOKENS, "seed": seed, "stream": True,
        "ignore_eos": True,
    }


async def stream(server, body):
    """Return the text, and the seconds until the first token and until the end."""
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request("/v1/completions", body))
    status = await reader.readline()
    assert b" 200 " in status, status
    first, text = None, ""
    while line := await reader.readline():
        if line.startswith(b"data: [DONE]"):
            break
        if line.startswith(b"data: "):
            first = first or time.perf_counter() - start
            text += json.loads(line[6:])["choices"][0]["text"]
    writer.close()
    return text, first, time.perf_counter() - start


async def throughput(server, count):
    """Return tokens and requests per second of `count` clients."""
    end = time.perf_counter() + SECONDS
    done = 0

    async def client(number):
        nonlocal done
        rng = random.Random(number)
        while time.perf_counter() < end:
            await stream(server, completion(rng, rng.randrange(1 << 30)))
            done += 1

    async def tokens():
        return metric_sum(await get(server, "/metrics"), "nextword_generated_tokens_total")

    first, start = await tokens(), time.perf_counter()
    clients = asyncio.gather(*(client(number) for number in range(count)))
    await asyncio.sleep(SECONDS)
    generated, seconds = await tokens() - first, time.perf_counter() - start
    await clients
    return generated / seconds, generated / seconds / TOKENS


async def main(program, model, options):
    server = Server(program, model, *options)
    try:
        seeded = completion(random.Random(99), 7)
        alone, _, _ = await stream(server, seeded)
        one, _ = await throughput(server, 1)
        many, capacity = await throughput(server, CLIENTS)
        print(json.dumps({
            "one_client_tokens_per_s": round(one, 1), f"{CLIENTS}_clients_tokens_per_s": round(many, 1),
            "times_one_client": round(many / one, 2), "memory_mib": round(server.memory()),
        }), flush=True)
        rng, tasks = random.Random(1), []
        for number in range(ARRIVALS):
            body = seeded if number % 10 == 5 else completion(rng, number)
            tasks.append(asyncio.create_task(stream(server, body)))
            await asyncio.sleep(rng.expovariate(capacity / 2))
        results = await asyncio.gather(*tasks)
        same = all(results[number][0] == alone for number in range(5, ARRIVALS, 10))
        metrics = await get(server, "/metrics")
        value = {name: metric_sum(metrics, f"nextword_{name}") for name in (
            "cached_tokens_total", "prompt_tokens_total", "cache_pages_used", "cache_pages_cached",
            "cache_pages_free", "preemptions_total")}
        print(json.dumps({
            "arrivals_per_s": round(capacity / 2, 2),
            "first_token_s": {p: round(quantile([first for _, first, _ in results], q), 3)
                              for p, q in (("p50", 0.5), ("p95", 0.95), ("max", 1.0))},
            "seeded_completions_equal": same, **value,
        }), flush=True)
        return same
    finally:
        server.stop()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    sys.exit(0 if asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3:])) else 1)
