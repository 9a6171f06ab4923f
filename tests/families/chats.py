"""Chat templates that write what the published models' own templates write, for turns of text and pictures."""

from __future__ import annotations


def _parts(image: str, text: str = "part['text']") -> str:
    """Jinja for the parts of a message in their order."""
    return (
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
        "{% if part['type'] == 'image' %}{{ '" + image + "' }}{% elif part['type'] == 'text' %}{{ " + text + " }}"
        "{% endif %}{% endfor %}{% endif %}"
    )


def _pictures_first(image: str, text: str) -> str:
    """Jinja for a message whose pictures stand before its texts, whatever their order."""
    return (
        "{% for part in m['content'] if part['type'] == 'image' %}{{ '" + image + "' }}{% endfor %}"
        "{% for part in m['content'] if part['type'] == 'text' %}{{ " + text + " }}{% endfor %}"
    )


_TURN = "<|im_start|>{{ m['role'] + '\n' }}"
_ANSWERING = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
_SYSTEM = (
    "{% if loop.first and m['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}"
)
_QWEN_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"

# ChatML. Qwen2-VL and Qwen2.5-VL put a system turn before a conversation that has none; the others do not.
QWEN2_VL = (
    "{% for m in messages %}"
    + _SYSTEM
    + _TURN
    + _parts(_QWEN_PICTURE)
    + "{{ '<|im_end|>\n' }}{% endfor %}"
    + _ANSWERING
)
QWEN3_VL = "{% for m in messages %}" + _TURN + _parts(_QWEN_PICTURE) + "{{ '<|im_end|>\n' }}{% endfor %}" + _ANSWERING
QWEN3 = (
    "{% for m in messages %}" + _TURN + "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
INTERNVL = (
    "{% for m in messages %}" + _TURN + _parts("<IMG_CONTEXT>\n") + "{{ '<|im_end|>\n' }}{% endfor %}" + _ANSWERING
)

# The published templates of LLaVA-interleave and LLaVA-OneVision: history has a blank after the role, the prompt has
# none, so an answered prompt is not the beginning of the longer conversation.
INTERLEAVE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' }}"
    + _pictures_first("<image>", "'\n' + part['text']")
    + "{{ '<|im_end|>' }}{% endfor %}"
    + _ANSWERING
)

LLAVA_NEXT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' }}"
    + _pictures_first("<image>\n", "part['text']")
    + "{{ ' [/INST]' }}{% else %}{{ ' ' + m['content'][0]['text'] + '</s> ' }}{% endif %}{% endfor %}"
)

# A colon, and a blank unless a picture comes first.
_ROLE = (
    "{{ m['role'] | capitalize }}{% if m['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
)
_SPOKEN = (
    "{% for m in messages %}" + _ROLE + _parts("<image>") + "{{ '<end_of_utterance>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
SMOLVLM = "<|im_start|>" + _SPOKEN
IDEFICS3 = "<|begin_of_text|>" + _SPOKEN

GEMMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}"
    + _parts("<start_of_image>", "part['text'] | trim")
    + "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

# Mistral's published template opens a conversation without a system turn with one of its own, which names the day.
MISTRAL3 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ '[SYSTEM_PROMPT]' + messages[0]['content'] + '[/SYSTEM_PROMPT]' }}{% else %}"
    "{{ '[SYSTEM_PROMPT]Today is ' + strftime_now('%Y-%m-%d') + '.[/SYSTEM_PROMPT]' }}{% endif %}"
    "{% for m in messages if m['role'] != 'system' %}{% if m['role'] == 'user' %}{{ '[INST]' }}"
    + _parts("[IMG]")
    + "{{ '[/INST]' }}{% else %}"
    + _parts("[IMG]")
    + "{{ eos_token }}{% endif %}{% endfor %}"
)

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{{ m['content'] | trim }}{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
