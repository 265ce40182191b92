"""A template is rendered by transformers' own code, and that is all of transformers that is loaded for it."""

from __future__ import annotations

import json
import subprocess
import sys

SOURCE = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}{% generation %}{{ m | tojson }}{%"
    " endgeneration %}{% if m['role'] == 'user' %}{% continue %}{% endif %}{{ strftime_now('%Y') | length }}{% endfor"
    " %}\n  {{ tools }}"
)
CHAT = [{"role": "user", "content": "ü <b>"}, {"role": "assistant", "content": "x", "reasoning": "y"}]

PROGRAM = """
import json, logging, sys
from coldpress.models.tokenizers.chat_template import ChatTemplate
source, chat = json.loads(sys.argv[1])
alone = ChatTemplate(source, {"bos_token": "<s>"})._render(chat, False)
left = sorted(name for name in sys.modules if name.split(".")[0] == "transformers")
import transformers
from transformers.utils.chat_template_utils import render_jinja_template
(expected,), _ = render_jinja_template(conversations=[chat], chat_template=source, bos_token="<s>")
print(json.dumps([alone, expected, left, len(logging.getLogger("transformers").handlers)]))
"""


def test_it_renders_as_the_whole_library_and_leaves_it_to_be_imported():
    command = [sys.executable, "-c", PROGRAM, json.dumps([SOURCE, CHAT])]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    alone, expected, left, handlers = json.loads(said)
    assert alone == expected
    assert left == []
    assert handlers == 1
