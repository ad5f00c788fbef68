"""What `nextword serve` bears: throughput and latency, aborted requests, slow clients, hostile ones.

    python scripts/load_test.py target/release/nextword runs/quickstart/best [PART ...]

Parts: clients, aborts, slow, hostile; all if none is named. Starts the server itself, needs nothing
but Python, writes one line of JSON a measurement. The driver shares the machine with the server.
"""

import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time


class Server:
    def __init__(self, program, record, *options):
        command = [program, "serve", f"m={record}", "--port", "0", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if "listening on " in line:
                self.port = int(line.split("listening on ")[1].split()[0].rsplit(":", 1)[1])
                return
        raise SystemExit("the server does not start")

    def memory(self):
        """Resident memory in MiB."""
        with open(f"/proc/{self.process.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


def request(path, body, headers=""):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{headers}"
        f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + data


async def get(server, path):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
    text = (await reader.read()).decode()
    writer.close()
    return text


async def metric(server, name):
    lines = (await get(server, "/metrics")).splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name + "{"))


def completion(tokens, seed, stream=True):
    prompt = ["One day", "The fox", "A small bird sat", "In the morning"][seed % 4]
    return {
        "model": "m", "prompt": prompt, "max_tokens": tokens, "seed": seed, "stream": stream,
        "ignore_eos": True, "overflow": "slide",
    }


async def stream(server, tokens, seed):
    """Times of the chunks of one answer since it was asked for; `None` if it failed."""
    begin = time.perf_counter()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(request("/v1/completions", completion(tokens, seed)))
        status = await reader.readline()
        if b" 200 " not in status:
            return None
        times, done = [], False
        while line := await reader.readline():
            if line.startswith(b"data: [DONE]"):
                done = True
            elif line.startswith(b"data: "):
                times.append(time.perf_counter() - begin)
        writer.close()
        return times if done else None
    except OSError:
        return None


def part(values, p):
    return sorted(values)[min(len(values) - 1, int(p * len(values)))] if values else float("nan")


async def clients(server):
    await stream(server, 8, 0)
    base = None
    for count in (1, 4, 16, 64):
        rounds = 6 if count == 1 else 3
        begin = time.perf_counter()

        async def one(client):
            return [await stream(server, 64, client * 100 + n) for n in range(rounds)]

        answers = [a for some in await asyncio.gather(*map(one, range(count))) for a in some]
        seconds = time.perf_counter() - begin
        good = [a for a in answers if a]
        gaps = [b - a for times in good for a, b in zip(times, times[1:])]
        rate = len(good) * 64 / seconds
        base = base or rate
        print(json.dumps({
            "clients": count, "tokens_per_s": round(rate), "times_one_client": round(rate / base, 2),
            "first_token_ms": {p: round(1e3 * part([t[0] for t in good], q), 1)
                               for p, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))},
            "next_token_p99_ms": round(1e3 * part(gaps, 0.99), 1),
            "errors": len(answers) - len(good),
        }), flush=True)


async def abort(server, n):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request("/v1/completions", completion(2000, n, stream=n % 2 == 0)))
    # Before the answer, at its beginning, in its middle.
    await asyncio.sleep(random.Random(n).choice([0, 0.001, 0.01, 0.05]))
    writer.transport.abort()


async def free(server):
    """Seconds until no answer is under way and none waits."""
    begin = time.perf_counter()
    while await metric(server, "nextword_running") + await metric(server, "nextword_queued"):
        if time.perf_counter() - begin > 20:
            return None
        await asyncio.sleep(0.005)
    return round(time.perf_counter() - begin, 3)


async def aborts(server):
    for n in range(200):  # warm
        await abort(server, n)
    await free(server)
    before = server.memory()
    for first in range(0, 1000, 20):
        await asyncio.gather(*(abort(server, n) for n in range(first, first + 20)))
    seconds = await free(server)
    after = server.memory()
    print(json.dumps({
        "aborted": 1000, "all_free_after_s": seconds, "memory_mib_before": round(before, 1),
        "memory_mib_after": round(after, 1),
        "growth_percent": round(100 * (after / before - 1), 2),
    }), flush=True)


async def attacker(server, n, stop):
    """Sends a head, a body, or reads an answer, one byte at a time."""
    whole = request("/v1/completions", completion(300, n))
    while not stop.is_set():
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            if n % 4 == 3:
                writer.write(whole.replace(b"Content-Length: ", b"Content-Length: 1"))
            for byte in whole[: 40 if n % 2 else 300]:
                if stop.is_set():
                    break
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.25)
            writer.close()
        except OSError:
            await asyncio.sleep(0.2)


async def slow(server):
    async def normal():
        ends = []
        for n in range(60):
            times = await stream(server, 16, n)
            ends.append(times[-1] if times else float("inf"))
        return ends

    await normal()
    calm = await normal()
    stop = asyncio.Event()
    attack = [asyncio.create_task(attacker(server, n, stop)) for n in range(200)]
    await asyncio.sleep(2)
    under = await normal()
    stop.set()
    await asyncio.gather(*attack)
    print(json.dumps({
        "slow_clients": 200,
        "normal_p99_ms": round(1e3 * part(calm, 0.99), 1),
        "under_attack_p99_ms": round(1e3 * part(under, 0.99), 1),
        "p99_ratio": round(part(under, 0.99) / part(calm, 0.99), 2),
        "p50_ratio": round(statistics.median(under) / statistics.median(calm), 2),
    }), flush=True)


def hostile_request(rng):
    """Something that a good client would not send."""
    odd = [None, True, False, -1, 0, 1, 2**31, 2**63, 2**64, 1e308, -1e308, 0.5, "", "x", "\0", "\ud7ff", "💥" * 50,
           [], [[]], [[[]]], {}, {"a": {}}, [1, 2, "a"], [0] * 200, ["a"] * 300, "../../etc/passwd"]
    keys = ["model", "prompt", "messages", "max_tokens", "max_completion_tokens", "n", "best_of", "echo", "stream",
            "stream_options", "logprobs", "top_logprobs", "stop", "seed", "suffix", "temperature", "top_p", "top_k",
            "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "overflow",
            "ignore_eos", "tools", "response_format", "content", "tokens", "with_pieces", "user"]
    path = rng.choice(["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize", "/v1/models", "/",
                       "/v1/%00", "/" + "a" * 3000, "/../../x", "/v1/models/..%2f..%2fx"])
    body = {"model": "m", "prompt": "One", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    for _ in range(rng.randrange(5)):
        body[rng.choice(keys)] = rng.choice(odd)
    if rng.random() < 0.1:
        body["stop"] = ["".join(rng.choices("aé💥\n ", k=rng.randrange(300))) for _ in range(rng.randrange(6))]
    if rng.random() < 0.1:
        body["logit_bias"] = {str(rng.choice([0, 1, 5, 10**9, -3, "x"])): rng.choice([-100, 100, 5, 1e9])}
    if rng.random() < 0.05:
        body["prompt"] = rng.choice(["a" * 100_000, ["a"] * 128, [0] * 5000, "\u2028\u0085" * 20])
    data = json.dumps(body).encode()
    kind = rng.random()
    if kind < 0.08:
        data = data[: rng.randrange(len(data))]
    elif kind < 0.16:
        at = rng.randrange(len(data))
        data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    elif kind < 0.18:
        data = b"[" * 5000
    headers = ""
    if rng.random() < 0.05:
        headers = rng.choice(["X-A: " + "a" * 8000 + "\r\n", "X: y\r\n" * 80, "Transfer-Encoding: chunked\r\n",
                              "Expect: 100-continue\r\n", "Authorization: Basic !!!\r\n", "Origin: null\r\n"])
    whole = request(path, data, headers)
    if rng.random() < 0.03:
        whole = whole.replace(b"POST", rng.choice([b"GET", b"DELETE", b"BREW", b"\xff\xff", b""]), 1)
    if rng.random() < 0.02:
        whole = bytes(rng.randrange(256) for _ in range(rng.randrange(400)))
    return whole


async def hostile(server, count=10_000):
    codes = {}
    limit = asyncio.Semaphore(16)

    async def one(n):
        async with limit:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(hostile_request(random.Random(n)))
                if n % 10 == 0:
                    writer.write_eof()
                answer = await asyncio.wait_for(reader.read(), 30)
                code = answer[9:12].decode("latin1") if answer.startswith(b"HTTP/1.1 ") else "closed"
                writer.close()
            except asyncio.TimeoutError:
                code = "timeout"
            except OSError:
                code = "closed"
            codes[code] = codes.get(code, 0) + 1
            if code.startswith("5"):
                print("5xx for request", n, answer[:300], flush=True)

    await asyncio.gather(*map(one, range(count)))
    alive = server.process.poll() is None and "200 OK" in await get(server, "/health")
    good = await stream(server, 4, 1)
    print(json.dumps({
        "hostile": count, "codes": dict(sorted(codes.items())), "alive": alive, "serves": bool(good),
        "all_free_after_s": await free(server),
    }), flush=True)


def main():
    program, record, *parts = sys.argv[1:]
    for work in (clients, aborts, slow, hostile):
        if parts and work.__name__ not in parts:
            continue
        server = Server(program, record)
        try:
            asyncio.run(work(server))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
