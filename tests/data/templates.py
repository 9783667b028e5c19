"""Tokenizers and chat templates of the kinds that real models ship, made here, for comparing with transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

# Each is written in the manner of a family of models; together they use what transformers adds to Jinja.
TEMPLATES = {
    "header": (  # bos first, content trimmed, a date, as in Llama 3
        "{{- bos_token }}{%- set date = 'July' if date_string is not defined else date_string %}"
        "{% for message in messages %}\n"
        "  {%- set content = '<|im_start|>' + message['role'] + '\n\n' + message['content'] | trim + '<|im_end|>' %}\n"
        "  {{- content }}\n{% endfor %}\n"
        "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
    ),
    "alternating": (  # raise_exception, loop.index0, no special token before the answer, as in Llama 2 and Mistral
        "{% if messages[0]['role'] == 'system' %}{% set start = messages[0]['content'] + '\n\n' %}"
        "{% set rest = messages[1:] %}{% else %}{% set start = '' %}{% set rest = messages %}{% endif %}"
        "{% for message in rest %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
        "{% if message['role'] == 'user' %}[INST] {{ (start if loop.first else '') + message['content'] }} [/INST]"
        "{% else %} {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "thinking": (  # namespace, reversed slices, reasoning stripped from earlier turns, as in Qwen3
        "{%- set ns = namespace(last=messages|length - 1) %}"
        "{%- for message in messages %}"
        "{%- set content = message.content %}{%- set reasoning = '' %}"
        "{%- if message.reasoning_content is defined and message.reasoning_content is not none %}"
        "{%- set reasoning = message.reasoning_content %}"
        "{%- elif '</think>' in content %}"
        "{%- set reasoning = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
        "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
        "{{- '<|im_start|>' + message.role + '\n' }}"
        "{%- if message.role == 'assistant' and loop.index0 == ns.last %}"
        "{{- '<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' }}{%- endif %}"
        "{{- content + '<|im_end|>\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
    ),
    "other_prompt": (  # the prompt alone renders differently from its place in the whole
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think></think>' }}{% endif %}"
    ),
    "plain": (  # no special token at all: tokens merge across the border
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    ),
    "marked": (  # generation blocks, break, tojson, trim_blocks and lstrip_blocks at work
        "{% for m in messages %}\n"
        "  {% if m.role == 'assistant' %}\n"
        "<|im_start|>assistant\n{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n\n"
        "  {% else %}\n"
        "<|im_start|>{{ m.role }}\n{{ {'text': m.content, 'é': [1, none]} | tojson }}<|im_end|>\n"
        "  {% endif %}\n"
        "  {% if loop.index > 40 %}{% break %}{% endif %}\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
}
# These refuse some conversations, take tools, or mark what the assistant said.
MORE = {
    "no_system": (  # refuses system messages, the assistant is called model, as in Gemma
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for message in messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
        "{{ '<|im_start|>' + role + '\n' + message['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
    ),
    "tools": (  # tools, calls and their results; reasoning; generation blocks around all that the assistant says
        "{%- if tools %}{{- '<|im_start|>system\n# Tools\n' }}{%- for tool in tools %}"
        "{{- tool | tojson + '\n' }}{%- endfor %}{{- '<|im_end|>\n' }}{%- endif %}"
        "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' }}"
        "{%- if m.role == 'assistant' %}{%- generation %}"
        "{%- if m.reasoning_content %}{{- '<think>' + m.reasoning_content + '</think>' }}{%- endif %}"
        "{{- m.content if m.content else '' }}"
        "{%- for call in m.tool_calls or [] %}{{- '\n<tool_call>' + call.function.name + ' ' }}"
        "{{- call.function.arguments | tojson + '</tool_call>' }}{%- endfor %}"
        "{{- '<|im_end|>\n' }}{%- endgeneration %}"
        "{%- else %}{{- m.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
    ),
    "tail_unmarked": (  # the end of a turn lies outside of its generation block, and a macro shifts what is counted
        "{% macro head(role) %}{{ '<|im_start|>' + role + '\n' }}{% endmacro %}"
        "{% for m in messages %}{{ head(m.role) }}{% if m.role == 'assistant' %}"
        "{% set said %}{% generation %}{{ m.content }}{% endgeneration %}{% endset %}{{ said }}"
        "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ head('assistant') }}{% endif %}"
    ),
}


def with_template(source: Path, folder: Path, template: str) -> Path:
    """A copy of the tokenizer files in `source` with another template."""
    folder.mkdir(parents=True)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder / name)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def metaspace(source: Path, folder: Path) -> Path:
    """A byte-fallback BPE with Metaspace, `<s>` and `</s>`, template in tokenizer_config.json as a list; no pad token.

    tokenizer.json also asks for truncation and padding, which training must not follow.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    tokenizer.decoder = decoders.Sequence([decoders.Metaspace(), decoders.ByteFallback(), decoders.Fuse()])
    corpus = [
        "please route the ticket to one queue and answer with its name only",
        "the parcel never came, Straße déjà vu",
    ]
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=32, pad_id=0, pad_token="<unk>")
    tokenizer.save(str(folder / "tokenizer.json"))
    template = (
        "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    )
    _json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": {
                "__type": "AddedToken",
                "content": "</s>",
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
            },
            "unk_token": "<unk>",
            "additional_special_tokens": ["<|user|>", "<|assistant|>"],
            "chat_template": [
                {"name": "tool_use", "template": "{{ raise_exception('not this one') }}"},
                {"name": "default", "template": template},
            ],
        },
    )
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    _json(folder / "config.json", {**config, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None})
    return folder


def _json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
