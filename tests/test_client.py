# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Clients of deployed servers are called as what users know: a pipeline of transformers, huggingface_hub's clients."""

import asyncio
import inspect
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import AsyncInferenceClient, InferenceClient
from transformers import AutoModelForSequenceClassification, pipeline

from hf_securerouter import AsyncSecureRouterClient, SecureRouterClient, SecureRouterValueError
from hf_securerouter.errors import BadRowsError
from hf_securerouter.mpc.sessions.session import SessionError
from tests.support.clear_servers import Servers
from tests.tiny import family_config


PAIR = {"text": "a dull movie", "text_pair": "it was slow"}
INPUTS = ["the film was good", ["the film was good", "bad", "a dull movie"], PAIR, [PAIR, {"text": "bad"}]]
PROBLEMS = {"single_label_classification": 3, "regression": 1, "multi_label_classification": 3}


def classifier(problem_type="single_label_classification"):
    torch.manual_seed(0)
    names = ["bad", "fair", "good"][: PROBLEMS[problem_type]]
    config = family_config("bert", id2label=dict(enumerate(names)), problem_type=problem_type)
    return AutoModelForSequenceClassification.from_config(config).eval()


@pytest.fixture
def servers(tokenizer):
    return Servers(classifier(), tokenizer)


@pytest.mark.parametrize("problem_type", PROBLEMS)
def test_call_and_result_are_those_of_transformers_pipeline(problem_type, tokenizer):
    model = classifier(problem_type)
    pipe = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    client = SecureRouterClient(Path("client"), Servers(model, tokenizer))
    options = [{}, {"top_k": None}, {"top_k": 1}, {"top_k": 2}, {"function_to_apply": "sigmoid"}]
    options += [{"top_k": None, "function_to_apply": name} for name in ("softmax", "none")]
    for given in options:
        for inputs in INPUTS:
            assert _rounded(client(inputs, **given)) == _rounded(pipe(inputs, **given)), (inputs, given)
    assert _rounded(client(iter(INPUTS[1]))) == _rounded(pipe(INPUTS[1]))


def test_one_output_without_a_problem_type_is_a_number(tokenizer):
    model = classifier("regression")
    model.config.problem_type = None
    pipe = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    client = SecureRouterClient(Path("client"), Servers(model, tokenizer))
    for inputs in INPUTS:
        assert _rounded(client(inputs)) == _rounded(pipe(inputs, function_to_apply="none"))
        assert _rounded(client(inputs, function_to_apply="sigmoid")) == _rounded(pipe(inputs))


def _rounded(result):
    if isinstance(result, list):
        return [_rounded(one) for one in result]
    assert set(result) == {"label", "score"}
    return result["label"], pytest.approx(result["score"], abs=1e-5)


def test_the_method_of_huggingface_hubs_clients(servers):
    client = SecureRouterClient(Path("client"), servers)
    found = client.text_classification("the film was good")
    assert [(one.label, one.score) for one in found] == [
        (one["label"], one["score"]) for one in client("the film was good", top_k=None)
    ]
    assert [one.label for one in client.text_classification("the film was good", top_k=1)] == [found[0].label]
    for ours, theirs in ((SecureRouterClient, InferenceClient), (AsyncSecureRouterClient, AsyncInferenceClient)):
        expected = set(inspect.signature(theirs.text_classification).parameters) - {"model"}
        assert set(inspect.signature(ours.text_classification).parameters) == expected


def test_what_cannot_be_asked_is_refused_before_it_is_sent(servers):
    client = SecureRouterClient(Path("client"), servers)
    with pytest.raises(SecureRouterValueError, match="one of softmax, sigmoid, none, got 'tanh'"):
        client("bad", function_to_apply="tanh")
    with pytest.raises(SecureRouterValueError, match="did you mean `top_k`"):
        client("bad", topk=1)
    for top_k in (0, -1, 1.5, "2", True):
        with pytest.raises(SecureRouterValueError, match=f"`top_k` should be an integer of at least 1, got {top_k!r}"):
            client("bad", top_k=top_k)
    with pytest.raises(BadRowsError, match=r"`inputs\[1\]` is empty"):
        client(["bad", ""])
    assert not servers.sizes
    with pytest.raises(SecureRouterValueError, match="pass `party0` and `party1` to `from_pretrained`"):
        SecureRouterClient(Path("client"))("bad")


def test_it_connects_when_it_is_asked_and_again_after_a_failure(servers):
    client = SecureRouterClient(Path("client"), servers)
    servers.failing = 1
    with pytest.raises(SessionError, match="is gone"):
        client("bad")
    assert not servers.is_open
    client("bad")
    assert servers.is_open
    with client:
        pass
    assert not servers.is_open


def test_threads_that_share_a_client_ask_one_after_another(servers):
    client, found = SecureRouterClient(Path("client"), servers), []
    threads = [threading.Thread(target=lambda: found.append(client(INPUTS[1]))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [found[0]] * 8 and servers.sizes == [3] * 8


def test_in_a_fork_a_client_waits_for_no_thread_of_the_other_process(servers):
    def refuse():
        raise SessionError("a fork")

    client = SecureRouterClient(Path("client"), servers)
    servers.in_a_fork, servers.refuse_in_a_fork = True, refuse
    with client._lock, ThreadPoolExecutor() as pool:  # a lock that nobody gives back
        for action in (lambda: client("bad"), client.__enter__, lambda: asyncio.run(asynchronous(client)("bad"))):
            with pytest.raises(SessionError, match="a fork"):
                pool.submit(action).result(60)
        pool.submit(client.close).result(60)
        pool.submit(lambda: asyncio.run(asynchronous(client).close())).result(60)


def asynchronous(client):
    """An async client in a fork, whose task of another process never ends."""
    found = AsyncSecureRouterClient(client)
    found._asking = SimpleNamespace(done=lambda: False)
    return found


# asyncio.


def asking(servers, ask):
    """The result of a coroutine function that is given an open client."""

    async def main():
        async with AsyncSecureRouterClient(SecureRouterClient(Path("client"), servers)) as client:
            return await ask(client)

    result = asyncio.run(main())
    assert not servers.is_open
    return result


def test_questions_that_wait_together_are_asked_in_whole_batches(servers):
    texts = ["the film was good", "bad", "a dull movie", "it was slow", "great", "not bad", "awful"]

    async def ask(client):
        one = [client.text_classification(text) for text in texts]
        return await asyncio.gather(*one, client([*INPUTS[1], PAIR], top_k=2), client(PAIR))

    *elements, four, pair = asking(servers, ask)
    assert servers.sizes == [3, 3, 1, 4, 1]  # a question is not torn apart, whatever its size
    expected = SecureRouterClient(Path("client"), servers)
    for text, found in zip(texts, elements, strict=True):
        assert _rounded([vars(one) for one in found]) == _rounded(expected(text, top_k=None))
    assert _rounded(four) == _rounded(expected([*INPUTS[1], PAIR], top_k=2))
    assert _rounded(pair) == _rounded(expected(PAIR))


def test_an_error_reaches_those_whose_it_is(servers):
    async def ask(client):
        wrong = await asyncio.gather(client(""), client("bad"), return_exceptions=True)
        servers.failing = 1
        failed = await asyncio.gather(*(client("bad") for _ in range(4)), return_exceptions=True)
        return wrong, failed

    wrong, failed = asking(servers, ask)
    assert isinstance(wrong[0], BadRowsError) and wrong[1] == failed[3]
    assert all(isinstance(one, SessionError) for one in failed[:3])  # one batch; the next has a new connection


def test_a_question_that_was_given_up_delays_and_disturbs_nobody(servers):
    model = servers.model
    servers.model = lambda **inputs: (time.sleep(0.2), model(**inputs))[1]

    async def ask(client):
        tasks = [asyncio.create_task(client("bad")) for _ in range(6)]
        await asyncio.sleep(0.1)
        for given_up in (1, 4):  # one that is being asked, and one that waits
            tasks[given_up].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asking(servers, ask)
    assert [isinstance(one, asyncio.CancelledError) for one in found] == [False, True, False, False, True, False]
    assert found[0] == found[2] == found[3] == found[5] and servers.sizes == [3, 2]
