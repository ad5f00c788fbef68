"""Test `nextword serve` with the official `openai` client: each case checks one compatibility claim.

    pip install openai
    python tests/openai_client.py target/release/nextword runs/quickstart [CASE ...]

Starts its own servers on free ports and stops them. Exits with 0 if all cases pass.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import httpx
import openai
from openai import AsyncOpenAI, OpenAI

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
from load_test import make_adapter  # noqa: E402

TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
CASES = []


def case(test):
    CASES.append(test)
    return test


class Server:
    """A running server, with clients for it."""

    def __init__(self, program, *args, env=None):
        self.process = subprocess.Popen(
            [program, "serve", *map(str, args), "--port", "0"],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        for line in self.process.stderr:
            if "listening on " in line:
                self.url = line.split("listening on ")[1].split()[0]
                break
        else:
            raise SystemExit("the server did not start")
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def client(self, kind=OpenAI, key="none", **options):
        options.setdefault("max_retries", 0)
        return kind(base_url=self.url + "/v1", api_key=key, timeout=60, **options)

    def raw(self, path, body=None, headers=None, method=None):
        """Return status, headers and body of a plain HTTP request."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **(headers or {})}
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, dict(response.headers), response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read().decode()

    def metric(self, name):
        text = self.raw("/metrics")[2]
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + "{"))

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=40)


def expect_error(kind, call, status=None, param=None, code=None, message=None):
    try:
        call()
    except kind as error:
        assert status is None or error.status_code == status, error
        body = error.body or {}
        assert param is None or body["param"] == param, body
        assert code is None or body["code"] == code, body
        assert message is None or message in error.message, error.message
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


def find_model_dir(path):
    """Return the model folder (of a run, if `path` is one)."""
    candidates = [Path(path), Path(path) / "best", Path(path) / "last"]
    return next(candidate for candidate in candidates if (candidate / "config.json").exists())


def with_chat_template(path, folder):
    """Copy the model folder and add a chat template."""
    model_dir = find_model_dir(path)
    copy = Path(folder) / "chat"
    shutil.copytree(model_dir, copy)
    (copy / "chat_template.jinja").write_text(TEMPLATE)
    return copy


class Fixture:
    def __init__(self, program, model_dir):
        self.folder = tempfile.TemporaryDirectory()
        chat_model = with_chat_template(model_dir, self.folder.name)
        adapter = f"{self.folder.name}/adapter"
        make_adapter(find_model_dir(model_dir), adapter, seed=1)
        (Path(adapter) / "chat_template.jinja").write_text("tuned " + TEMPLATE)
        self.open = Server(program, f"plain={model_dir}", f"chat={chat_model}", f"tuned={adapter}")
        self.locked = Server(program, f"plain={model_dir}", "--api-key", "sesame")
        self.small = Server(program, f"plain={model_dir}", "--slots", "1", "--queue", "1")
        self.c = self.open.client()
        self.context = self.c.models.retrieve("plain").meta["n_ctx_train"]

    def complete(self, prompt="One day", **options):
        options = {"model": "plain", "max_tokens": 12, "temperature": 0, **options}
        return self.c.completions.create(prompt=prompt, **options)

    def chat(self, content="One day", model="chat", **options):
        options = {"max_tokens": 12, "temperature": 0, **options}
        messages = [{"role": "user", "content": content}]
        return self.c.chat.completions.create(model=model, messages=messages, **options)

    def ids(self, text):
        return json.loads(self.open.raw("/tokenize", {"content": text})[2])["tokens"]


# --- models

@case
def models_are_listed(w):
    assert [m.id for m in w.c.models.list()] == ["plain", "chat", "tuned"]


@case
def model_can_be_retrieved(w):
    model = w.c.models.retrieve("plain")
    assert model.object == "model" and model.owned_by == "nextword" and model.created > 0


@case
def unknown_model_returns_404(w):
    expect_error(openai.NotFoundError, lambda: w.c.models.retrieve("gpt-9"), code="model_not_found")


# --- adapters

@case
def adapter_names_its_parent(w):
    assert w.c.models.retrieve("tuned").parent == "plain"
    assert not hasattr(w.c.models.retrieve("plain"), "parent")


@case
def adapter_changes_the_completion_by_its_scale(w):
    scaled = lambda scale: w.complete(model="tuned", logprobs=1, extra_body={"adapter_scale": scale}).choices[0]
    base, tuned = (w.complete(model=model, logprobs=1).choices[0] for model in ("plain", "tuned"))
    assert scaled(0) == base and scaled(1) == tuned
    assert scaled(0.5).logprobs not in (base.logprobs, tuned.logprobs)
    options = {"extra_body": {"adapter_scale": 3}}
    expect_error(openai.BadRequestError, lambda: w.complete(model="tuned", **options), param="adapter_scale")
    options = {"extra_body": {"adapter_scale": 1}}
    expect_error(openai.BadRequestError, lambda: w.complete(**options), param="adapter_scale")


@case
def adapter_has_its_own_chat_template(w):
    prompt_tokens = [w.chat(model=model).usage.prompt_tokens for model in ("chat", "tuned")]
    assert prompt_tokens[1] > prompt_tokens[0]


@case
def adapters_and_base_answer_the_same_together_as_alone(w):
    async def together(requests):
        client = w.open.client(AsyncOpenAI)
        async with client:
            calls = [client.completions.create(**request) for request in requests]
            return [done.choices[0].text for done in await asyncio.gather(*calls)]

    requests = [
        {"model": ["plain", "tuned"][n % 2], "prompt": "One day", "seed": n, "max_tokens": 20} for n in range(12)
    ]
    alone = [w.c.completions.create(**request).choices[0].text for request in requests]
    assert asyncio.run(together(requests)) == alone


# --- completions

@case
def completion_has_all_fields(w):
    done = w.complete()
    assert done.object == "text_completion" and done.id.startswith("cmpl-")
    assert done.model == "plain" and done.system_fingerprint.startswith("fp_")
    choice = done.choices[0]
    assert choice.index == 0 and choice.text and choice.finish_reason in ("stop", "length")
    assert choice.logprobs is None


@case
def usage_counts_prompt_and_completion(w):
    done = w.complete(max_tokens=5, extra_body={"ignore_eos": True})
    usage = done.usage
    assert usage.prompt_tokens == len(w.ids("One day")) and usage.completion_tokens == 5
    assert usage.total_tokens == usage.prompt_tokens + 5


@case
def max_tokens_defaults_to_16(w):
    done = w.c.completions.create(model="plain", prompt="One", extra_body={"ignore_eos": True})
    assert done.usage.completion_tokens == 16 and done.choices[0].finish_reason == "length"


@case
def stream_equals_unstreamed_completion(w):
    complete = w.complete().choices[0]
    chunks = list(w.complete(stream=True))
    assert "".join(c.choices[0].text for c in chunks) == complete.text
    assert chunks[-1].choices[0].finish_reason == complete.finish_reason
    assert all(c.choices[0].finish_reason is None for c in chunks[:-1])


@case
def chunks_share_id_created_and_model(w):
    chunks = list(w.complete(stream=True))
    assert len({(c.id, c.created, c.model, c.object) for c in chunks}) == 1


@case
def no_usage_chunk_unless_requested(w):
    assert all(c.usage is None and c.choices for c in w.complete(stream=True))


@case
def include_usage_adds_final_chunk_without_choices(w):
    chunks = list(w.complete(stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0
    assert all(c.usage is None for c in chunks[:-1])


@case
def stream_is_valid_server_sent_events(w):
    body = {"model": "plain", "prompt": "One day", "max_tokens": 3, "stream": True}
    status, headers, text = w.open.raw("/v1/completions", body)
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    assert text.endswith("data: [DONE]\n\n")
    assert all(not part or part.startswith("data: ") for part in text.split("\n\n"))


@case
def n_returns_n_choices(w):
    done = w.complete(n=3, temperature=1, seed=5)
    assert [c.index for c in done.choices] == [0, 1, 2]
    assert len({c.text for c in done.choices}) > 1


@case
def n_choices_stream_with_their_index(w):
    complete = w.complete(n=3, temperature=1, seed=5)
    texts = ["", "", ""]
    for chunk in w.complete(n=3, temperature=1, seed=5, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [c.text for c in complete.choices]


@case
def batched_prompts_complete_in_order(w):
    done = w.complete(prompt=["One day", "The end"])
    assert done.choices[0].text == w.complete("One day").choices[0].text
    assert done.choices[1].text == w.complete("The end").choices[0].text


@case
def prompt_may_be_token_ids(w):
    assert w.complete(prompt=w.ids("One day")).choices[0].text == w.complete().choices[0].text


@case
def prompt_may_be_lists_of_token_ids(w):
    done = w.complete(prompt=[w.ids("One day"), w.ids("The end")])
    assert done.choices[1].text == w.complete("The end").choices[0].text


@case
def embeddings_are_vectors_of_length_1(w):
    texts = ["One day", "a fox"]
    # Without a format, the client asks for base64 and decodes it.
    response = w.c.embeddings.create(model="plain", input=texts)
    assert [item.index for item in response.data] == [0, 1]
    numbers = w.c.embeddings.create(model="plain", input=texts[1], encoding_format="float")
    assert response.data[1].embedding == numbers.data[0].embedding
    assert abs(sum(x * x for x in numbers.data[0].embedding) - 1) < 1e-5
    assert numbers.usage.prompt_tokens == numbers.usage.total_tokens == len(w.ids(texts[1]))


@case
def embeddings_of_fewer_dimensions_return_400(w):
    call = lambda: w.c.embeddings.create(model="plain", input="a", dimensions=2)
    expect_error(openai.BadRequestError, call, 400, "dimensions")


@case
def echo_prepends_prompt(w):
    assert w.complete(echo=True).choices[0].text == "One day" + w.complete().choices[0].text


@case
def echo_streams_prompt_first(w):
    chunks = list(w.complete(echo=True, stream=True))
    assert chunks[0].choices[0].text == "One day"


@case
def echo_with_max_tokens_0_returns_prompt(w):
    done = w.complete(echo=True, max_tokens=0)
    assert done.choices[0].text == "One day" and done.usage.completion_tokens == 0


@case
def logprobs_have_tokens_and_offsets(w):
    done = w.complete(logprobs=3, max_tokens=4)
    logprobs = done.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == 4
    assert all(p <= 0 for p in logprobs.token_logprobs)
    for top, p in zip(logprobs.top_logprobs, logprobs.token_logprobs):
        assert 3 <= len(top) <= 4 and abs(max(top.values()) - p) < 1e-9  # greedy
    assert logprobs.text_offset[0] == 0


@case
def logprobs_0_has_no_top_logprobs(w):
    logprobs = w.complete(logprobs=0).choices[0].logprobs
    assert logprobs.token_logprobs and logprobs.top_logprobs is None


@case
def echoed_logprobs_start_with_none(w):
    n = len(w.ids("One day"))
    logprobs = w.complete(echo=True, logprobs=2, max_tokens=1).choices[0].logprobs
    assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
    assert len(logprobs.tokens) == n + 1 and logprobs.text_offset[n] == len("One day")
    assert all(p is not None for p in logprobs.token_logprobs[1:])


@case
def streamed_logprobs_equal_unstreamed(w):
    complete = w.complete(logprobs=2, echo=True).choices[0].logprobs
    tokens, values = [], []
    for chunk in w.complete(logprobs=2, echo=True, stream=True):
        if chunk.choices[0].logprobs:
            tokens += chunk.choices[0].logprobs.tokens
            values += chunk.choices[0].logprobs.token_logprobs
    assert (tokens, values) == (complete.tokens, complete.token_logprobs)


@case
def stop_string_ends_text_before_it(w):
    text = w.complete(max_tokens=24).choices[0].text
    stop = text[5:9]  # spans token boundaries
    done = w.complete(max_tokens=24, stop=stop).choices[0]
    assert done.text == text[: text.index(stop)] and done.finish_reason == "stop"


@case
def earliest_stop_string_wins(w):
    text = w.complete(max_tokens=24).choices[0].text
    late, early = text[4:6], text[1:3]  # A model that was trained for a moment may end after a few words.
    done = w.complete(max_tokens=24, stop=[late, early]).choices[0]
    assert done.text == text[: min(text.index(late), text.index(early))]


@case
def stop_string_is_never_streamed(w):
    text = w.complete(max_tokens=24).choices[0].text
    stop = text[3:6]
    streamed = "".join(c.choices[0].text for c in w.complete(max_tokens=24, stop=stop, stream=True))
    assert streamed == text[: text.index(stop)]


@case
def partial_stop_string_is_streamed(w):
    text = w.complete(max_tokens=24).choices[0].text
    streamed = w.complete(max_tokens=24, stop=text[3:5] + "§", stream=True)
    assert "".join(c.choices[0].text for c in streamed) == text


@case
def stop_string_tokens_have_no_logprobs(w):
    text = w.complete(max_tokens=24).choices[0].text
    choice = w.complete(max_tokens=24, stop=text[3:6], logprobs=1).choices[0]
    assert all(offset <= len(choice.text) for offset in choice.logprobs.text_offset)


@case
def same_seed_gives_same_text(w):
    a, b = (w.complete(temperature=1, seed=7).choices[0].text for _ in range(2))
    assert a == b


@case
def different_seeds_give_different_texts(w):
    texts = {w.complete(temperature=1, seed=s, max_tokens=24).choices[0].text for s in range(5)}
    assert len(texts) > 1


@case
def unseeded_completions_differ(w):
    assert len({w.complete(temperature=1, max_tokens=24).choices[0].text for _ in range(5)}) > 1


@case
def seeded_text_is_identical_under_load(w):
    def one(seed):
        return w.complete(prompt="One day" * (1 + seed % 3), temperature=1, seed=seed, max_tokens=20)

    alone = [one(seed).choices[0].text for seed in range(24)]
    together = [None] * 24

    def run(seed):
        together[seed] = one(seed).choices[0].text

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(24)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert together == alone


@case
def logit_bias_forces_token(w):
    forced = w.ids("a")[0]
    done = w.complete(logit_bias={str(forced): 100}, max_tokens=3, logprobs=0)
    assert len(set(done.choices[0].logprobs.tokens)) == 1


@case
def frequency_penalty_changes_text(w):
    plain = w.complete(max_tokens=40, extra_body={"ignore_eos": True}).choices[0].text
    other = w.complete(max_tokens=40, frequency_penalty=2, extra_body={"ignore_eos": True})
    assert other.choices[0].text != plain


@case
def top_k_1_is_greedy(w):
    done = w.complete(temperature=1.5, extra_body={"top_k": 1}).choices[0].text
    assert done == w.complete().choices[0].text


@case
def tiny_top_p_is_greedy(w):
    done = w.complete(temperature=1.5, top_p=1e-6).choices[0].text
    assert done == w.complete().choices[0].text


@case
def best_of_equal_to_n_is_accepted(w):
    assert len(w.complete(n=2, best_of=2).choices) == 2


@case
def raw_response_has_headers(w):
    raw = w.c.completions.with_raw_response.create(model="plain", prompt="One", max_tokens=1, user="me")
    assert raw.headers["content-type"] == "application/json" and raw.parse().choices


@case
def top_k_minus_1_keeps_all_tokens(w):
    one, other = (w.complete(temperature=1, seed=3, extra_body={"top_k": k}) for k in (-1, 0))
    assert one.choices[0].text == other.choices[0].text


@case
def stop_token_ids_end_the_completion(w):
    body = {"ignore_eos": True}
    tokens = w.complete(max_tokens=24, logprobs=0, extra_body=body).choices[0].logprobs.tokens
    stop = next(token for token in tokens[2:] if len(w.ids(token)) == 1)
    done = w.complete(max_tokens=24, extra_body={"stop_token_ids": w.ids(stop), **body})
    expected = tokens[: tokens.index(stop)]
    assert done.choices[0].finish_reason == "stop" and done.choices[0].text == "".join(expected)
    assert done.usage.completion_tokens == len(expected) + 1


@case
def min_tokens_postpones_the_end(w):
    text = w.complete(max_tokens=24).choices[0].text
    stop = text[2:4]
    done = w.complete(max_tokens=24, stop=stop, extra_body={"min_tokens": 12})
    assert done.usage.completion_tokens >= 12 and done.choices[0].text.startswith(text[:4])
    ids = w.ids(text)[:3]
    done = w.complete(max_tokens=24, extra_body={"min_tokens": 12, "stop_token_ids": ids})
    assert done.usage.completion_tokens >= 12
    call = lambda: w.complete(max_tokens=4, extra_body={"min_tokens": 5})
    expect_error(openai.BadRequestError, call, 400, "min_tokens")


@case
def closing_a_stream_frees_its_slot(w):
    before = w.open.metric("nextword_cancelled_total")
    stream = w.complete(stream=True, max_tokens=400, extra_body={"ignore_eos": True, "overflow": "slide"})
    next(iter(stream))
    stream.close()
    deadline = time.time() + 5
    while w.open.metric("nextword_cancelled_total") == before or w.open.metric("nextword_running"):
        assert time.time() < deadline, "the slot is not freed"
        time.sleep(0.02)


@case
def overflow_slide_exceeds_context(w):
    n = w.context * 2
    done = w.complete(max_tokens=n, extra_body={"overflow": "slide", "ignore_eos": True})
    assert done.usage.completion_tokens == n


@case
def cached_tokens_are_reported_without_changing_output(w):
    prompt = w.ids("One day a small fox went to the river. ") * 4
    prompt = prompt[: min(80, w.context - 20)]
    first = w.complete(prompt=prompt, logprobs=1)
    second = w.complete(prompt=prompt, logprobs=1)
    assert second.usage.prompt_tokens_details.cached_tokens >= 32
    assert first.choices[0] == second.choices[0]


# --- chats

@case
def chat_has_all_fields(w):
    done = w.chat()
    assert done.object == "chat.completion" and done.id.startswith("chatcmpl-")
    message = done.choices[0].message
    assert message.role == "assistant" and message.content and done.choices[0].logprobs is None


@case
def chat_equals_completion_of_rendered_template(w):
    text = w.complete(prompt="user: One day\nassistant:", model="chat").choices[0].text
    assert w.chat().choices[0].message.content == text


@case
def chat_streams_role_content_and_finish_reason(w):
    chunks = list(w.chat(stream=True))
    first, last = chunks[0].choices[0], chunks[-1].choices[0]
    assert first.delta.role == "assistant" and first.delta.content == ""
    assert last.delta.content is None and last.finish_reason in ("stop", "length")
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert text == w.chat().choices[0].message.content
    assert all(c.object == "chat.completion.chunk" for c in chunks)


@case
def stream_helper_assembles_chat(w):
    messages = [{"role": "user", "content": "One day"}]
    # The helper raises an error if the finish reason is `length`.
    stop = w.chat().choices[0].message.content[6:9]
    with w.c.chat.completions.stream(
        model="chat", messages=messages, max_tokens=12, temperature=0, stop=stop
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "content.delta" in kinds
    assert final.choices[0].message.content == w.chat(stop=stop).choices[0].message.content


@case
def chat_logprobs_have_top_logprobs(w):
    content = w.chat(logprobs=True, top_logprobs=4, max_tokens=3).choices[0].logprobs.content
    assert len(content) == 3
    for token in content:
        assert token.logprob <= 0 and len(token.top_logprobs) >= 4


@case
def chat_streams_usage(w):
    chunks = list(w.chat(stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens > 0


@case
def chat_stops_at_stop_string(w):
    text = w.chat(max_tokens=24).choices[0].message.content
    stop = text[4:8]
    assert w.chat(max_tokens=24, stop=[stop]).choices[0].message.content == text[: text.index(stop)]


@case
def chat_turns_are_rendered_in_order(w):
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": [{"type": "text", "text": "c"}]},
    ]
    done = w.c.chat.completions.create(model="chat", messages=messages, max_tokens=4, temperature=0)
    expected = w.complete("system: s\nuser: a\nassistant: b\nuser: c\nassistant:", model="chat", max_tokens=4)
    assert done.choices[0].message.content == expected.choices[0].text


@case
def max_completion_tokens_is_supported(w):
    done = w.chat(max_tokens=None, max_completion_tokens=3, extra_body={"ignore_eos": True})
    assert done.usage.completion_tokens == 3


@case
def chat_without_template_names_template_file(w):
    call = lambda: w.chat(model="plain")
    expect_error(openai.BadRequestError, call, 400, "messages", message="chat_template.jinja")


@case
def tools_are_rejected(w):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    expect_error(openai.BadRequestError, lambda: w.chat(tools=tools), 400, "tools", message="tool_choice")
    # The template has no place for them.
    call = lambda: w.chat(tools=tools, tool_choice="none")
    expect_error(openai.BadRequestError, call, 400, "tools")
    for choice in ["required", {"type": "function", "function": {"name": "f"}}]:
        expect_error(openai.BadRequestError, lambda: w.chat(tool_choice=choice), 400, "tool_choice")


@case
def tool_choice_without_tools_is_accepted(w):
    for choice in ["none", "auto"]:
        assert w.chat(tool_choice=choice).choices[0] == w.chat().choices[0]


@case
def tool_calls_and_results_reach_the_template(w):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "One", "name": "me"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "day"},
    ]
    done = w.c.chat.completions.create(model="chat", messages=messages, max_tokens=4, temperature=0)
    expected = w.complete("user: One\nassistant: \ntool: day\nassistant:", model="chat", max_tokens=4)
    assert done.choices[0].message.content == expected.choices[0].text


@case
def unfinished_message_is_continued_on_request(w):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "One day"}]
    body = {"continue_final_message": True}
    create = w.c.chat.completions.create
    done = create(model="chat", messages=messages, max_tokens=4, temperature=0, extra_body=body)
    expected = w.complete("user: a\nassistant: One day", model="chat", max_tokens=4)
    assert done.choices[0].message.content == expected.choices[0].text
    body["add_generation_prompt"] = True
    call = lambda: create(model="chat", messages=messages, extra_body=body)
    expect_error(openai.BadRequestError, call, 400, "add_generation_prompt")


@case
def generation_prompt_can_be_left_out(w):
    done = w.chat(extra_body={"add_generation_prompt": False})
    text = w.complete(prompt="user: One day\n", model="chat").choices[0].text
    assert done.choices[0].message.content == text


@case
def unread_template_variables_are_rejected(w):
    call = lambda: w.chat(extra_body={"chat_template_kwargs": {"enable_thinking": False}})
    expect_error(openai.BadRequestError, call, 400, "chat_template_kwargs", message="enable_thinking")


@case
def json_mode_is_rejected(w):
    call = lambda: w.chat(response_format={"type": "json_object"})
    expect_error(openai.BadRequestError, call, 400, "response_format")


# --- errors

@case
def suffix_is_rejected(w):
    expect_error(openai.BadRequestError, lambda: w.complete(suffix="x"), 400, "suffix")


@case
def best_of_above_n_is_rejected(w):
    expect_error(openai.BadRequestError, lambda: w.complete(best_of=3), 400, "best_of")


@case
def unknown_fields_are_rejected_by_name(w):
    for field, value in [
        ("fancy", 1), ("grammar", "root ::= x"), ("guided_json", {}), ("guided_regex", "a"), ("stop_tokens", [1]),
        ("response_format", {"type": "text"}), ("chat_template", "x"), ("tools", []), ("min_token", 3),
        ("reasoning_effort", "low"), ("skip_special_tokens", False), ("use_beam_search", True),
    ]:
        call = lambda: w.complete(extra_body={field: value})
        expect_error(openai.BadRequestError, call, 400, field, message=field)
    call = lambda: w.complete(extra_body={"stop_token_id": [1]})
    expect_error(openai.BadRequestError, call, 400, message="did you mean `stop_token_ids`?")
    for field, value in [("user", "me"), ("metadata", {}), ("prompt_cache_key", "k"), ("fancy", None)]:
        assert w.complete(extra_body={field: value}).choices


@case
def out_of_range_errors_name_the_field(w):
    for field, value in [
        ("temperature", 3), ("temperature", -1), ("top_p", 2), ("n", 0), ("n", 1000), ("logprobs", 6),
        ("max_tokens", -1), ("presence_penalty", 3), ("seed", 1.5), ("stop", [""]), ("stop", ["a"] * 5),
        ("logit_bias", {"x": 1}), ("logit_bias", {"0": 101}),
    ]:
        call = lambda: w.complete(**{field: value})
        expect_error(openai.BadRequestError, call, 400, field)


@case
def type_errors_name_the_field(w):
    for field, value in [
        ("temperature", "hot"), ("stream", "yes"), ("prompt", 5), ("prompt", [["a"]]), ("prompt", []),
        ("echo", 1), ("stop", 3), ("prompt", [10**9]), ("prompt", [1, "a"]), ("model", 3),
    ]:
        call = lambda: w.complete(**{"extra_body": {field: value}})
        expect_error(openai.BadRequestError, call, 400, field)


@case
def malformed_messages_are_rejected(w):
    for messages in [[], [{"role": "robot", "content": "x"}], [{"role": "user", "content": 5}]]:
        call = lambda: w.c.chat.completions.create(model="chat", messages=messages)
        expect_error(openai.BadRequestError, call, 400, "messages")


@case
def unknown_model_in_request_returns_404(w):
    expect_error(openai.NotFoundError, lambda: w.complete(model="gpt-9"), 404, "model", "model_not_found")


@case
def too_long_prompt_error_states_both_lengths(w):
    prompt = [0] * (w.context + 5)
    call = lambda: w.complete(prompt=prompt)
    error = expect_error(openai.BadRequestError, call, 400, "prompt", "context_length_exceeded")
    assert str(w.context) in error.message and str(w.context + 5) in error.message


@case
def max_tokens_above_context_is_rejected(w):
    call = lambda: w.complete(max_tokens=w.context * 2)
    expect_error(openai.BadRequestError, call, 400, code="context_length_exceeded")


@case
def invalid_json_returns_400(w):
    status, _, text = w.open.raw("/v1/completions", b"{\"prompt\": ")
    assert status == 400 and json.loads(text)["error"]["type"] == "invalid_request_error"


@case
def wrong_content_type_returns_415(w):
    status, _, _ = w.open.raw("/v1/completions", b"{}", {"Content-Type": "text/plain"})
    assert status == 415


@case
def too_large_body_returns_413(w):
    status, _, _ = w.open.raw("/v1/completions", b" " * ((1 << 20) + 1))
    assert status == 413


@case
def unknown_path_and_wrong_method_return_errors(w):
    status, _, text = w.open.raw("/v1/nothing")
    assert status == 404 and "/v1/completions" in text and "/v1/nothing" in text
    assert w.open.raw("/v1/completions")[0] == 405
    assert "error" in json.loads(w.open.raw("/v1/..%2f..%2fetc/passwd")[2])


@case
def wrong_api_keys_are_rejected(w):
    for key in ["wrong", "sesam", "sesame2"]:
        client = w.locked.client(key=key)
        expect_error(openai.AuthenticationError, client.models.list, 401, code="invalid_api_key")
    assert w.locked.client(key="sesame").models.list().data


@case
def api_key_guards_all_paths_except_health(w):
    paths = json.loads(w.open.raw("/openapi.json")[2])["paths"]
    for path in [*paths, "/", "/app.js", "/style.css", "/none"]:
        status = w.locked.raw(path.replace("{model}", "plain"))[0]
        assert status == (200 if path == "/health" else 401), (path, status)


@case
def full_queue_returns_429_with_retry_after(w):
    streams = []
    client = w.small.client()
    body = {"overflow": "slide", "ignore_eos": True}
    create = lambda: client.completions.create(
        model="plain", prompt="One", max_tokens=1500, stream=True, extra_body=body
    )
    try:
        for _ in range(3):
            streams.append(create())
            time.sleep(0.05)
        raise AssertionError("no request is rejected")
    except openai.RateLimitError as error:
        assert error.response.headers["retry-after"] == "1" and error.body["code"] == "queue_full"
    finally:
        [stream.close() for stream in streams]


@case
def client_retries_after_rate_limit(w):
    body = {"overflow": "slide", "ignore_eos": True}
    client = w.small.client()
    first, second = (
        client.completions.create(model="plain", prompt="One", max_tokens=1500, stream=True, extra_body=body)
        for _ in range(2)
    )
    threading.Timer(0.5, lambda: (first.close(), second.close())).start()
    retrying = w.small.client(max_retries=5)
    assert retrying.completions.create(model="plain", prompt="One", max_tokens=1).choices


# --- other endpoints

@case
def a_slash_at_the_end_of_a_path_makes_no_difference(w):
    for path in ["/v1/models", "/health", "/metrics", "/v1/models/plain", "/openapi.json", "/explain"]:
        assert w.open.raw(path + "/")[0] == 200, path
    body = {"model": "plain", "prompt": "One", "max_tokens": 1}
    assert w.open.raw("/v1/completions/", body)[0] == 200
    assert w.locked.raw("/v1/models/")[0] == 401 and w.locked.raw("/health/")[0] == 200


@case
def tokenize_and_detokenize_roundtrip(w):
    ids = w.ids("One day")
    status, _, text = w.open.raw("/detokenize", {"tokens": ids})
    assert status == 200 and json.loads(text)["content"] == "One day"


@case
def health_ready_and_metrics_respond(w):
    assert json.loads(w.open.raw("/health")[2]) == {"status": "ok"}
    assert w.open.raw("/ready")[0] == 200
    assert w.open.metric("nextword_generated_tokens_total") > 0


@case
def foreign_host_and_origin_are_rejected(w):
    assert w.open.raw("/v1/models", headers={"Host": "evil.example"})[0] == 403
    assert w.open.raw("/v1/models", headers={"Origin": "http://evil.example"})[0] == 403


@case
def tokens_have_byte_offsets(w):
    text = "One day"
    body = {"content": text, "with_pieces": True}
    tokens = json.loads(w.open.raw("/tokenize", body)[2])["tokens"]
    assert [t["id"] for t in tokens] == w.ids(text)
    assert "".join(text[t["start"] : t["end"]] for t in tokens) == text


@case
def oversized_response_is_rejected(w):
    body = {"overflow": "slide", "ignore_eos": True}
    call = lambda: w.complete(n=16, max_tokens=65536, logprobs=5, extra_body=body)
    expect_error(openai.BadRequestError, call, 400, "max_tokens", message="262144")


@case
def idle_connections_outlive_client_keepalive(w):
    with httpx.Client(base_url=w.open.url, limits=httpx.Limits(keepalive_expiry=60)) as client:
        ports = []
        for pause in (0, 6):
            time.sleep(pause)
            response = client.get("/health")
            sock = response.extensions["network_stream"].get_extra_info("socket")
            ports.append(sock.getsockname()[1])
    assert ports[0] == ports[1]


# --- async client

def async_case(test):
    def run(w):
        async def run_with_client():
            async with w.open.client(AsyncOpenAI) as client:
                await test(w, client)

        asyncio.run(run_with_client())

    run.__name__ = test.__name__
    CASES.append(run)
    return run


async def acomplete(client, prompt="One day", **options):
    options = {"model": "plain", "max_tokens": 12, "temperature": 0, **options}
    return await client.completions.create(prompt=prompt, **options)


@async_case
async def async_completions_equal_sync_ones(w, client):
    assert (await acomplete(client)).choices[0].text == w.complete().choices[0].text


@async_case
async def async_streams_equal_sync_completions(w, client):
    text = ""
    async for chunk in await acomplete(client, stream=True):
        text += chunk.choices[0].text
    assert text == w.complete().choices[0].text


@async_case
async def async_models_are_listed(w, client):
    assert [m.id async for m in client.models.list()] == ["plain", "chat", "tuned"]


@async_case
async def async_chats_stream(w, client):
    messages = [{"role": "user", "content": "One day"}]
    create = client.chat.completions.create
    text = ""
    async for chunk in await create(
        model="chat", messages=messages, max_tokens=12, temperature=0, stream=True
    ):
        text += chunk.choices[0].delta.content or ""
    assert text == w.chat().choices[0].message.content


@async_case
async def async_errors_have_their_class(w, client):
    try:
        await acomplete(client, model="gpt-9")
    except openai.NotFoundError as error:
        assert error.body["code"] == "model_not_found"
    else:
        raise AssertionError("no error was raised")


@async_case
async def parallel_streams_do_not_mix(w, client):
    async def one(seed):
        text = ""
        async for chunk in await acomplete(client, f"{seed} ", temperature=1, seed=seed, stream=True):
            text += chunk.choices[0].text
        return text

    together = await asyncio.gather(*map(one, range(16)))
    alone = [w.complete(f"{s} ", temperature=1, seed=s).choices[0].text for s in range(16)]
    assert together == alone


@async_case
async def async_timeout_frees_the_slot(w, client):
    try:
        body = {"overflow": "slide", "ignore_eos": True}
        await client.with_options(timeout=httpx.Timeout(0.2)).completions.create(
            model="plain", prompt="One", max_tokens=2000, extra_body=body
        )
    except openai.APITimeoutError:
        pass
    deadline = time.time() + 5
    while w.open.metric("nextword_running"):
        assert time.time() < deadline, "the slot is not freed"
        await asyncio.sleep(0.02)


# --- shutdown

@case
def aborted_stream_ends_with_an_error(w):
    body = {"overflow": "slide", "ignore_eos": True}
    stream = w.small.client().completions.create(
        model="plain", prompt="One", max_tokens=60_000, stream=True, extra_body=body
    )
    next(iter(stream))
    terminate = lambda: w.small.process.send_signal(signal.SIGTERM)
    timers = [threading.Timer(delay, terminate) for delay in (0, 0.5)]
    [timer.start() for timer in timers]
    try:
        for _ in stream:
            pass
        raise AssertionError("no error was raised")
    except openai.APIError as error:
        assert error.type == "unavailable_error" and "shutting down" in error.message, error
    assert w.small.process.wait(timeout=10) == 0


@case
def graceful_shutdown_finishes_active_streams(w):
    body = {"overflow": "slide", "ignore_eos": True}
    stream = w.locked.client(key="sesame").completions.create(
        model="plain", prompt="One", max_tokens=300, stream=True, temperature=0,
        stream_options={"include_usage": True}, extra_body=body,
    )
    next(iter(stream))
    w.locked.process.send_signal(signal.SIGTERM)
    chunks = list(stream)
    assert chunks[-1].usage.completion_tokens == 300
    assert w.locked.process.wait(timeout=10) == 0


def main():
    program, model_dir, *names = sys.argv[1:]
    fixture = Fixture(program, model_dir)
    failed = 0
    try:
        for test in CASES:
            if names and test.__name__ not in names:
                continue
            try:
                test(fixture)
                print(f"ok    {test.__name__}")
            except Exception as error:  # noqa: BLE001: any failure of a case is reported
                failed += 1
                print(f"FAIL  {test.__name__}: {type(error).__name__} {error}")
    finally:
        for server in (fixture.open, fixture.small, fixture.locked):
            if server.process.poll() is None:
                server.stop()
    count = len(names or CASES)
    print(f"{count - failed} of {count} cases pass")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
