#!/usr/bin/env python3
"""The official `openai` package against a running server.

TESSERA_BASE_URL: such as http://127.0.0.1:8080/v1. TESSERA_API_KEY: a key of the server, if it asks for one.
With the path of tessera_fake_server as its argument it starts that one instead. Without the package, or with
neither of the two, prints why and exits with 77 (skipped).
"""
import atexit
import os
import subprocess
import sys
import unittest

try:
    import openai
except ImportError:
    print("SKIPPED: the Python package openai is not installed (pip install openai)")
    sys.exit(77)
if len(sys.argv) > 1 and "TESSERA_BASE_URL" not in os.environ:
    server = subprocess.Popen([sys.argv.pop(1), "0", "test-key"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              text=True)
    atexit.register(server.wait)
    atexit.register(server.terminate)
    os.environ["TESSERA_BASE_URL"] = server.stdout.readline().strip() + "/v1"
    os.environ["TESSERA_API_KEY"] = "test-key"
if "TESSERA_BASE_URL" not in os.environ:
    print("SKIPPED: TESSERA_BASE_URL is not set; start a server and name it, as http://127.0.0.1:8080/v1")
    sys.exit(77)

BASE_URL = os.environ["TESSERA_BASE_URL"]
API_KEY = os.environ.get("TESSERA_API_KEY", "")
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


def client(key=API_KEY):
    return openai.OpenAI(base_url=BASE_URL, api_key=key or "none", max_retries=0, timeout=120)


class OpenAiClient(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.client = client()
        cls.model = cls.client.models.list().data[0].id

    def chat(self, **fields):
        fields = {"model": self.model, "messages": MESSAGES, "temperature": 0, "max_tokens": 12, **fields}
        return self.client.chat.completions.create(**fields)

    def complete(self, **fields):
        fields = {"model": self.model, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 12,
                  **fields}
        return self.client.completions.create(**fields)

    def test_models(self):
        self.assertEqual(self.client.models.retrieve(self.model).id, self.model)
        with self.assertRaises(openai.NotFoundError):
            self.client.models.retrieve("no-such-model")

    def test_chat(self):
        answer = self.chat()
        self.assertEqual(answer.object, "chat.completion")
        self.assertEqual(answer.choices[0].message.role, "assistant")
        self.assertTrue(answer.choices[0].message.content)
        self.assertIn(answer.choices[0].finish_reason, ("stop", "length"))
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)
        self.assertGreaterEqual(answer.usage.prompt_tokens_details.cached_tokens, 0)

    def test_chat_stream_equals_whole(self):
        whole = self.chat().choices[0].message.content
        chunks = list(self.chat(stream=True, stream_options={"include_usage": True}))
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        self.assertEqual(text, whole)
        reasons = [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason]
        self.assertEqual(len(reasons), 1)
        self.assertEqual(chunks[-1].choices, [])
        self.assertGreater(chunks[-1].usage.completion_tokens, 0)
        self.assertTrue(all(c.usage is None for c in chunks[:-1]))

    def test_completion_and_stream(self):
        whole = self.complete()
        self.assertEqual(whole.object, "text_completion")
        text = "".join(c.choices[0].text for c in self.complete(stream=True))
        self.assertEqual(text, whole.choices[0].text)

    def test_token_ids_as_prompt(self):
        answer = self.complete(prompt=[1, 2, 3], max_tokens=2, extra_body={"return_token_ids": True})
        self.assertEqual(answer.usage.prompt_tokens, 3)
        self.assertEqual(len(answer.choices[0].token_ids), answer.usage.completion_tokens)

    def test_four_samples(self):
        answer = self.chat(n=4, temperature=1.0, seed=7)
        self.assertEqual([c.index for c in answer.choices], [0, 1, 2, 3])
        again = self.chat(n=4, temperature=1.0, seed=7)
        self.assertEqual([c.message.content for c in answer.choices], [c.message.content for c in again.choices])
        texts = {}
        for chunk in self.chat(n=4, temperature=1.0, seed=7, stream=True):
            for choice in chunk.choices:
                texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
        self.assertEqual([texts[i] for i in range(4)], [c.message.content for c in answer.choices])

    def test_logprobs(self):
        content = self.chat(logprobs=True, top_logprobs=3, max_tokens=4).choices[0].logprobs.content
        self.assertTrue(1 <= len(content) <= 4)
        for entry in content:
            self.assertEqual(len(entry.top_logprobs), 3)
            self.assertLessEqual(entry.logprob, 0)
            self.assertEqual([t.logprob for t in entry.top_logprobs],
                             sorted((t.logprob for t in entry.top_logprobs), reverse=True))
        logprobs = self.complete(logprobs=2, max_tokens=4).choices[0].logprobs
        self.assertEqual(len(logprobs.tokens), len(logprobs.token_logprobs))
        self.assertEqual(len(logprobs.tokens), len(logprobs.text_offset))
        self.assertTrue(all(2 <= len(top) <= 3 for top in logprobs.top_logprobs))

    def test_stop(self):
        whole = self.complete(max_tokens=12).choices[0].text
        stop = whole[len(whole) // 2:][:3]
        answer = self.complete(max_tokens=12, stop=[stop])
        self.assertEqual(answer.choices[0].text, whole[:whole.index(stop)])
        self.assertEqual(answer.choices[0].finish_reason, "stop")

    def test_bad_field(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat(temperature=5)
        self.assertEqual(caught.exception.param, "temperature")
        self.assertEqual(caught.exception.code, "invalid_value")
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat(extra_body={"no_such_field": 1})
        self.assertEqual(caught.exception.param, "no_such_field")
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat(tools=[{"type": "function", "function": {"name": "f"}}])
        self.assertEqual(caught.exception.param, "tools")

    def test_wrong_model(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            self.chat(model="gpt-4")
        self.assertEqual(caught.exception.code, "model_not_found")

    @unittest.skipUnless(API_KEY, "the server asks for no key (TESSERA_API_KEY is not set)")
    def test_wrong_key(self):
        with self.assertRaises(openai.AuthenticationError) as caught:
            client("wrong").models.list()
        self.assertEqual(caught.exception.code, "invalid_api_key")

    def test_leaving_a_stream_frees_it(self):
        stream = self.chat(stream=True, max_tokens=500, extra_body={"ignore_eos": True})
        next(iter(stream))
        stream.close()
        self.assertTrue(self.chat(max_tokens=1).choices)


if __name__ == "__main__":
    unittest.main(verbosity=2)
