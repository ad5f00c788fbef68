"""What `nextword serve` bears: throughput and latency, aborted requests, slow clients, hostile ones.

    python scripts/load_test.py target/release/nextword runs/quickstart/best [PART ...]

Parts: clients, aborts, slow, hostile; all if none is named. Starts the server itself, needs nothing
but Python on Linux, writes one line of JSON a measurement, and fails if one is not `ok`. The driver shares
the machine with the server: `driver_cores` and `server_cores` say how much of it each took.
"""

import asyncio
import json
import os
import random
import select
import signal
import socket
import statistics
import subprocess
import sys
import time

SECONDS = 5  # of each measurement of throughput
TOKENS = 64  # of each answer in it


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

    def seconds(self):
        """Time that its threads have worked, together."""
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


def value(text, name):
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + "{"))


async def metric(server, name):
    return value(await get(server, "/metrics"), name)


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


class Answer:
    """One streamed answer, read at the price of a system call and a count for each piece."""

    def __init__(self, server, client, n):
        self.client, self.n, self.times, self.status, self.tail = client, n, [], b"", b""
        self.begin = time.perf_counter()
        self.link = socket.create_connection(("127.0.0.1", server.port))
        self.link.sendall(request("/v1/completions", completion(TOKENS, client * 1000 + n)))

    def read(self):
        """Whether it goes on."""
        try:
            data = self.link.recv(1 << 16)
        except OSError:
            data = b""
        now = time.perf_counter() - self.begin
        self.status = self.status or data[9:12]
        # The end of what came before is shorter than the word.
        self.times += [now] * (self.tail[-5:] + data).count(b"data: ")
        self.tail = (self.tail + data)[-32:]
        return bool(data)

    def is_whole(self):
        return b"[DONE]" in self.tail


def ask(server, count):
    """`count` clients for some seconds, each with one answer after the other: the answers, and a line's beginning."""
    ready, links, answers = select.epoll(), {}, []

    def next_answer(client, n):
        answer = Answer(server, client, n)
        links[answer.link.fileno()] = answer
        ready.register(answer.link, select.EPOLLIN)

    def figures():
        tokens = value(asyncio.run(get(server, "/metrics")), "nextword_generated_tokens_total")
        return time.perf_counter(), tokens, server.seconds(), time.process_time()

    begin = figures()
    end = None
    for client in range(count):
        next_answer(client, 0)
    while links:
        for fd, _ in ready.poll():
            answer = links[fd]
            if answer.read():
                continue
            answer.link.close()
            answers.append(links.pop(fd))
            if end is None:
                next_answer(answer.client, answer.n + 1)
        if end is None and time.perf_counter() > begin[0] + SECONDS:
            end = figures()
    seconds, tokens, server_seconds, own_seconds = (b - a for a, b in zip(begin, end))
    return answers, {
        "clients": count, "tokens_per_s": round(tokens / seconds),
        "server_cores": round(server_seconds / seconds, 2), "driver_cores": round(own_seconds / seconds, 2),
    }


async def clients(server):
    await stream(server, 8, 0)
    base, fine = None, True
    for count in (1, 4, 16, 64):
        answers, line = await asyncio.to_thread(ask, server, count)
        good = [a for a in answers if a.is_whole()]
        # The last two are the reason of the end and the end.
        gaps = [b - a for answer in good for a, b in zip(answer.times[:-3], answer.times[1:-2])]
        rejected = sum(a.status == b"429" for a in answers)
        base = base or line["tokens_per_s"]
        line |= {
            "times_one_client": round(line["tokens_per_s"] / base, 2), "answers": len(answers),
            "first_token_ms": {p: round(1e3 * part([a.times[0] for a in good], q), 1)
                               for p, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))},
            "next_token_p99_ms": round(1e3 * part(gaps, 0.99), 1),
            "rejects": rejected, "errors": len(answers) - len(good) - rejected,
        }
        line["ok"] = len(answers) == len(good) and (count != 16 or line["times_one_client"] >= 4)
        fine &= line["ok"]
        print(json.dumps(line), flush=True)
    return fine


async def abort(server, n):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    body = completion(2000, n, stream=n % 2 == 0)
    body["prompt"] *= [1, 1, 30][n % 3]
    writer.write(request("/v1/completions", body))
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
    """Slots are free again, and memory stops growing: what the first thousand take is kept and used again."""
    done, memory, seconds = 0, {}, []
    for until in (200, 1000, 2000, 4000, 8000):
        for first in range(done, until, 20):
            await asyncio.gather(*(abort(server, n) for n in range(first, first + 20)))
        done = until
        seconds.append(await free(server))
        memory[until] = round(server.memory(), 1)
    growth = 100 * (memory[8000] / memory[1000] - 1)
    fine = None not in seconds and growth < 5
    print(json.dumps({
        "aborted": done, "all_free_after_s": seconds, "memory_mib_after": memory,
        "growth_percent_from_1000": round(growth, 2), "ok": fine,
    }), flush=True)
    return fine


async def attacker(server, n, stop):
    """By turns sends a head, sends a body, or reads an answer, one byte at a time."""
    whole = request("/v1/completions", completion(300, n))
    head = whole.index(b"\r\n\r\n") + 4
    loop, at_once = asyncio.get_running_loop(), [0, head, len(whole)][n % 3]
    while not stop.is_set():
        link = socket.socket()
        link.setblocking(False)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        try:
            await loop.sock_connect(link, ("127.0.0.1", server.port))
            await loop.sock_sendall(link, whole[:at_once])
            for byte in whole[at_once:]:
                await loop.sock_sendall(link, bytes([byte]))
                await asyncio.sleep(0.25)
                if stop.is_set():
                    break
            while not stop.is_set() and await loop.sock_recv(link, 1):
                await asyncio.sleep(0.25)
        except OSError:
            await asyncio.sleep(0.2)
        finally:
            link.close()


async def slow(server):
    """What a normal client feels once those who read slowly have been answered: their answers are load like any."""

    async def normal():
        ends = []
        for n in range(400):
            times = await stream(server, 16, n)
            ends.append(times[-1] if times else float("inf"))
        return ends

    await normal()
    calm = await normal()
    stop = asyncio.Event()
    attack = [asyncio.create_task(attacker(server, n, stop)) for n in range(200)]
    await asyncio.sleep(2)
    await free(server)
    under = await normal()
    stop.set()
    for task in attack:
        task.cancel()
    await asyncio.gather(*attack, return_exceptions=True)
    ratio = part(under, 0.99) / part(calm, 0.99)
    print(json.dumps({
        "slow_clients": 200,
        "normal_p99_ms": round(1e3 * part(calm, 0.99), 1),
        "under_attack_p99_ms": round(1e3 * part(under, 0.99), 1),
        "p99_ratio": round(ratio, 2),
        "p50_ratio": round(statistics.median(under) / statistics.median(calm), 2), "ok": ratio <= 1.5,
    }), flush=True)
    return ratio <= 1.5


def hostile_request(rng):
    """Something that a good client would not send."""
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
    good = bool(await stream(server, 4, 1))
    seconds = await free(server)
    fine = alive and good and seconds is not None and not any(code.startswith("5") for code in codes)
    print(json.dumps({
        "hostile": count, "codes": dict(sorted(codes.items())), "alive": alive, "serves": good,
        "all_free_after_s": seconds, "ok": fine,
    }), flush=True)
    return fine


def main():
    program, record, *parts = sys.argv[1:]
    fine = True
    for work in (clients, aborts, slow, hostile):
        if parts and work.__name__ not in parts:
            continue
        server = Server(program, record)
        try:
            fine &= asyncio.run(work(server))
        finally:
            server.stop()
    raise SystemExit(0 if fine else "not all is as it should be")


if __name__ == "__main__":
    main()
