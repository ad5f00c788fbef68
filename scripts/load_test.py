"""Load test of `nextword serve`: throughput and latency, aborted requests, slow clients, malformed requests.

    python scripts/load_test.py target/release/nextword runs/quickstart/best [PART ...]

Parts: clients, adapters, aborts, slow, malformed; default: all. `adapters` needs a model folder with float weights:
it makes random adapters of it. Starts the server itself and requires only Python on
Linux. Prints one line of JSON per measurement and fails if one is not `ok`. The driver runs on the same
machine as the server: `driver_cores` and `server_cores` are the CPU cores that each used.
"""

import array
import asyncio
import hashlib
import json
import os
import random
import select
import signal
import socket
import statistics
import subprocess
import struct
import sys
import tempfile
import time

SECONDS = 5  # duration of a throughput measurement
TOKENS = 64  # tokens per completion in it


class Server:
    def __init__(self, program, model_dir, *options):
        command = [program, "serve", f"m={model_dir}", "--port", "0", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if "listening on " in line:
                self.port = int(line.split("listening on ")[1].split()[0].rsplit(":", 1)[1])
                return
        raise SystemExit("the server did not start")

    def memory(self):
        """Return the resident memory in MiB."""
        with open(f"/proc/{self.process.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def cpu_seconds(self):
        """Return the CPU time of all threads."""
        with open(f"/proc/{self.process.pid}/stat") as file:
            user, system = file.read().rsplit(")", 1)[1].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

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


def metric_sum(text, name):
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + "{"))


async def metric(server, name):
    return metric_sum(await get(server, "/metrics"), name)


def completion(tokens, seed, stream=True, model="m"):
    prompt = ["One day", "The fox", "A small bird sat", "In the morning"][seed % 4]
    return {
        "model": model, "prompt": prompt, "max_tokens": tokens, "seed": seed, "stream": stream,
        "ignore_eos": True, "overflow": "slide",
    }


async def stream(server, tokens, seed):
    """Stream a completion and return the arrival times of its chunks, or `None` if it failed."""
    start = time.perf_counter()
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
                times.append(time.perf_counter() - start)
        writer.close()
        return times if done else None
    except OSError:
        return None


def quantile(values, q):
    return sorted(values)[min(len(values) - 1, int(q * len(values)))] if values else float("nan")


class StreamingRequest:
    """A streamed completion, read with minimal overhead: one system call and one count per chunk."""

    def __init__(self, server, client, n, model="m"):
        self.client, self.n, self.times, self.status, self.tail = client, n, [], b"", b""
        self.start = time.perf_counter()
        self.sock = socket.create_connection(("127.0.0.1", server.port))
        body = completion(TOKENS, client * 1000 + n, model=model)
        self.sock.sendall(request("/v1/completions", body))

    def read(self):
        """Read available data and return whether the stream continues."""
        try:
            data = self.sock.recv(1 << 16)
        except OSError:
            data = b""
        now = time.perf_counter() - self.start
        self.status = self.status or data[9:12]
        # An event prefix may be split across reads; five bytes of overlap cannot contain a full one.
        self.times += [now] * (self.tail[-5:] + data).count(b"data: ")
        self.tail = (self.tail + data)[-32:]
        return bool(data)

    def is_complete(self):
        return b"[DONE]" in self.tail


def run_clients(server, count, models=("m",)):
    """Run `count` clients for `SECONDS`, each with one request at a time; return requests and measurements.

    The clients take turns in naming `models`."""
    poll, sockets, requests = select.epoll(), {}, []

    def start_request(client, n):
        active = StreamingRequest(server, client, n, models[client % len(models)])
        sockets[active.sock.fileno()] = active
        poll.register(active.sock, select.EPOLLIN)

    def snapshot():
        tokens = metric_sum(asyncio.run(get(server, "/metrics")), "nextword_generated_tokens_total")
        return time.perf_counter(), tokens, server.cpu_seconds(), time.process_time()

    start = snapshot()
    end = None
    for client in range(count):
        start_request(client, 0)
    while sockets:
        for fd, _ in poll.poll():
            active = sockets[fd]
            if active.read():
                continue
            active.sock.close()
            requests.append(sockets.pop(fd))
            if end is None:
                start_request(active.client, active.n + 1)
        if end is None and time.perf_counter() > start[0] + SECONDS:
            end = snapshot()
    seconds, tokens, server_seconds, driver_seconds = (b - a for a, b in zip(start, end))
    return requests, {
        "clients": count, "tokens_per_s": round(tokens / seconds),
        "server_cores": round(server_seconds / seconds, 2), "driver_cores": round(driver_seconds / seconds, 2),
    }


async def clients(server):
    await stream(server, 8, 0)
    base, passed = None, True
    for count in (1, 4, 16, 64):
        requests, line = await asyncio.to_thread(run_clients, server, count)
        completed = [r for r in requests if r.is_complete()]
        # The last two chunks are the finish reason and [DONE].
        gaps = [t1 - t0 for r in completed for t0, t1 in zip(r.times[:-3], r.times[1:-2])]
        rejected = sum(r.status == b"429" for r in requests)
        base = base or line["tokens_per_s"]
        line |= {
            "times_one_client": round(line["tokens_per_s"] / base, 2), "requests": len(requests),
            "first_token_ms": {p: round(1e3 * quantile([r.times[0] for r in completed], q), 1)
                               for p, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))},
            "next_token_p99_ms": round(1e3 * quantile(gaps, 0.99), 1),
            "rejects": rejected, "errors": len(requests) - len(completed) - rejected,
        }
        line["ok"] = len(requests) == len(completed) and (count != 16 or line["times_one_client"] >= 4)
        passed &= line["ok"]
        print(json.dumps(line), flush=True)
    return passed


def file_hash(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_adapter(model_dir, path, seed, rank=16):
    """Write an adapter folder for all matrices of the blocks of a model, with small random values."""
    with open(f"{model_dir}/model.safetensors", "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    rng = random.Random(seed)
    modules, tensors, data = [], {}, bytearray()

    def add(name, shape, scale):
        values = array.array("f", [scale * (byte - 127.5) for byte in rng.randbytes(shape[0] * shape[1])]).tobytes()
        tensors[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
        data.extend(values)

    for name, tensor in sorted(header.items()):
        if not name.startswith("blocks.") or len(tensor.get("shape", [])) != 2:
            continue
        name, [d_in, d_out] = name.removesuffix(".weight"), tensor["shape"]
        add(f"{name}.lora_a", [d_in, rank], 1 / (127.5 * d_in**0.5))
        add(f"{name}.lora_b", [rank, d_out], 0.02 / 127.5)
        modules.append({"name": name, "rank": rank, "scale": 2.0})
    os.makedirs(path)
    with open(f"{path}/adapter.safetensors", "wb") as file:
        header = json.dumps(tensors).encode()
        header += b" " * (-len(header) % 8)
        file.write(struct.pack("<Q", len(header)) + header + data)
    names = {"weights": "model.safetensors", "config": "config.json", "tokenizer": "tokenizer.json"}
    base = {f"{key}_sha256": file_hash(f"{model_dir}/{name}") for key, name in names.items()}
    base |= {"name": "m", "path_hint": os.path.abspath(model_dir)}
    with open(f"{path}/adapter.json", "w") as file:
        json.dump({"format": 1, "lora": {"rank": rank}, "base": base, "modules": modules}, file)


async def completion_text(server, seed, model):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request("/v1/completions", completion(TOKENS, seed, stream=False, model=model)))
    response = await reader.read()
    writer.close()
    return json.loads(response.split(b"\r\n\r\n", 1)[1])["choices"][0]["text"]


async def same_texts(server, models):
    """Whether seeded completions under load have the text that they have alone."""
    requests = [(seed, models[seed % len(models)]) for seed in range(24)]
    alone = [await completion_text(server, *request) for request in requests]
    return alone == list(await asyncio.gather(*(completion_text(server, *request) for request in requests)))


def adapters(program, model_dir):
    """Three adapters and their base take little longer than the base alone, and their seeded answers do not change."""
    passed = True
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/a{n}" for n in (1, 2, 3)]
        for seed, path in enumerate(paths):
            make_adapter(model_dir, path, seed)
        server = Server(program, model_dir)
        base_memory = server.memory()
        server.stop()
        server = Server(program, model_dir, *(f"a{n}={path}" for n, path in enumerate(paths, 1)))
        models = ("m", "a1", "a2", "a3")
        try:
            extra_memory = server.memory() - base_memory
            asyncio.run(stream(server, 8, 0))
            same = asyncio.run(same_texts(server, models))
            for count in (4, 16, 64):
                ratios, rates = [], []
                for _ in range(3):
                    pair = [run_clients(server, count, names) for names in (("m",), models)]
                    complete = all(r.is_complete() for requests, _ in pair for r in requests)
                    rates.append([line["tokens_per_s"] for _, line in pair])
                    ratios.append(rates[-1][1] / rates[-1][0])
                line = {
                    "clients": count, "tokens_per_s_base_and_mixed": rates,
                    "ratio": round(statistics.median(ratios), 2), "same_texts": same,
                    "extra_memory_mib": round(extra_memory, 1),
                }
                line["ok"] = complete and same and (count != 16 or line["ratio"] >= 0.8)
                passed &= line["ok"]
                print(json.dumps(line), flush=True)
        finally:
            server.stop()
    return passed


async def abort(server, n):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    body = completion(2000, n, stream=n % 2 == 0)
    body["prompt"] *= [1, 1, 30][n % 3]
    writer.write(request("/v1/completions", body))
    # Before the first token, shortly after it, or in the middle of the completion.
    await asyncio.sleep(random.Random(n).choice([0, 0.001, 0.01, 0.05]))
    writer.transport.abort()


async def wait_until_idle(server):
    """Wait until no request is running or queued, and return the seconds."""
    start = time.perf_counter()
    while await metric(server, "nextword_running") + await metric(server, "nextword_queued"):
        if time.perf_counter() - start > 20:
            return None
        await asyncio.sleep(0.005)
    return round(time.perf_counter() - start, 3)


async def aborts(server):
    """All slots are freed, and memory stops growing after the first thousand requests."""
    done, memory, seconds = 0, {}, []
    for total in (200, 1000, 2000, 4000, 8000):
        for first in range(done, total, 20):
            await asyncio.gather(*(abort(server, n) for n in range(first, first + 20)))
        done = total
        seconds.append(await wait_until_idle(server))
        memory[total] = round(server.memory(), 1)
    growth = 100 * (memory[8000] / memory[1000] - 1)
    passed = None not in seconds and growth < 5
    print(json.dumps({
        "aborted": done, "all_free_after_s": seconds, "memory_mib_after": memory,
        "growth_percent_from_1000": round(growth, 2), "ok": passed,
    }), flush=True)
    return passed


async def slow_client(server, n, stop):
    """Send the headers, send the body, or read the response one byte at a time, depending on `n`."""
    raw = request("/v1/completions", completion(300, n))
    header_end = raw.index(b"\r\n\r\n") + 4
    loop, prefix = asyncio.get_running_loop(), [0, header_end, len(raw)][n % 3]
    while not stop.is_set():
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        try:
            await loop.sock_connect(sock, ("127.0.0.1", server.port))
            await loop.sock_sendall(sock, raw[:prefix])
            for byte in raw[prefix:]:
                await loop.sock_sendall(sock, bytes([byte]))
                await asyncio.sleep(0.25)
                if stop.is_set():
                    break
            while not stop.is_set() and await loop.sock_recv(sock, 1):
                await asyncio.sleep(0.25)
        except OSError:
            await asyncio.sleep(0.2)
        finally:
            sock.close()


async def slow(server):
    """Measure the latency of a normal client during an attack by slow clients.

    Starts measuring once the completions of the slow readers are done, since these are ordinary load."""

    async def normal_client():
        latencies = []
        for n in range(400):
            times = await stream(server, 16, n)
            latencies.append(times[-1] if times else float("inf"))
        return latencies

    await normal_client()
    baseline = await normal_client()
    stop = asyncio.Event()
    attackers = [asyncio.create_task(slow_client(server, n, stop)) for n in range(200)]
    await asyncio.sleep(2)
    await wait_until_idle(server)
    under_load = await normal_client()
    stop.set()
    for task in attackers:
        task.cancel()
    await asyncio.gather(*attackers, return_exceptions=True)
    ratio = quantile(under_load, 0.99) / quantile(baseline, 0.99)
    print(json.dumps({
        "slow_clients": 200,
        "normal_p99_ms": round(1e3 * quantile(baseline, 0.99), 1),
        "under_attack_p99_ms": round(1e3 * quantile(under_load, 0.99), 1),
        "p99_ratio": round(ratio, 2),
        "p50_ratio": round(statistics.median(under_load) / statistics.median(baseline), 2), "ok": ratio <= 1.5,
    }), flush=True)
    return ratio <= 1.5


def malformed_request(rng):
    """Return a random request that no well-behaved client would send."""
    odd = [None, True, False, -1, 0, 1, 2**31, 2**63, 2**64, 1e308, -1e308, 0.5, "", "x", "\0", "\ud7ff", "💥" * 50,
           [], [[]], [[[]]], {}, {"a": {}}, [1, 2, "a"], [0] * 200, ["a"] * 300, "../../etc/passwd"]
    keys = ["model", "prompt", "messages", "max_tokens", "max_completion_tokens", "n", "best_of", "echo", "stream",
            "stream_options", "logprobs", "top_logprobs", "stop", "seed", "suffix", "temperature", "top_p", "top_k",
            "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "overflow",
            "ignore_eos", "tools", "response_format", "content", "tokens", "with_pieces", "user"]
    path = rng.choice(["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize", "/v1/models", "/explain",
                       "/", "/v1/%00", "/" + "a" * 3000, "/../../x", "/v1/models/..%2f..%2fx"])
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
    raw = request(path, data, headers)
    if rng.random() < 0.03:
        raw = raw.replace(b"POST", rng.choice([b"GET", b"DELETE", b"BREW", b"\xff\xff", b""]), 1)
    if rng.random() < 0.02:
        raw = bytes(rng.randrange(256) for _ in range(rng.randrange(400)))
    return raw


async def malformed(server, count=10_000):
    codes = {}
    limit = asyncio.Semaphore(16)

    async def one(n):
        async with limit:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(malformed_request(random.Random(n)))
                if n % 10 == 0:
                    writer.write_eof()
                response = await asyncio.wait_for(reader.read(), 30)
                code = response[9:12].decode("latin1") if response.startswith(b"HTTP/1.1 ") else "closed"
                writer.close()
            except asyncio.TimeoutError:
                code = "timeout"
            except OSError:
                code = "closed"
            codes[code] = codes.get(code, 0) + 1
            if code.startswith("5"):
                print("5xx for request", n, response[:300], flush=True)

    await asyncio.gather(*map(one, range(count)))
    alive = server.process.poll() is None and "200 OK" in await get(server, "/health")
    completed = bool(await stream(server, 4, 1))
    seconds = await wait_until_idle(server)
    passed = alive and completed and seconds is not None and not any(code.startswith("5") for code in codes)
    print(json.dumps({
        "malformed": count, "codes": dict(sorted(codes.items())), "alive": alive, "serves": completed,
        "all_free_after_s": seconds, "ok": passed,
    }), flush=True)
    return passed


def main():
    program, model_dir, *parts = sys.argv[1:]
    if "hostile" in parts:
        print("warning: the part `hostile` is now called `malformed`", file=sys.stderr)
        parts = ["malformed" if part == "hostile" else part for part in parts]
    passed = True
    if not parts or "adapters" in parts:
        passed &= adapters(program, model_dir)
    for test in (clients, aborts, slow, malformed):
        if parts and test.__name__ not in parts:
            continue
        server = Server(program, model_dir)
        try:
            passed &= asyncio.run(test(server))
        finally:
            server.stop()
    raise SystemExit(0 if passed else "some checks failed")


if __name__ == "__main__":
    main()
