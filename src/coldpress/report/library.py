"""The JavaScript that draws charts: Vega, Vega-Lite and Vega-Embed in one file, made when a wheel is built.

The wheel has the file; in a copy of the sources it is made when it is first needed, which takes vl-convert. Nothing
else of coldpress is imported here, as the build runs this file by itself (hatch_build.py).
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("vega.js")
#: the version of Vega-Lite whose schema `charts` writes
_VEGA_LITE = "6.4"
_LICENCE = """\
/*! Vega, Vega-Lite, Vega-Embed and what they are made with: https://github.com/vega
Copyright (c) 2013-2026, University of Washington Interactive Data Lab and contributors. All rights reserved.
Redistribution and use in source and binary forms, with or without modification, are permitted provided that the
following conditions are met:
1. Redistributions of source code must retain the above copyright notice, this list of conditions and the following
disclaimer.
2. Redistributions in binary form must reproduce the above copyright notice, this list of conditions and the following
disclaimer in the documentation and/or other materials provided with the distribution.
3. Neither the name of the copyright holder nor the names of its contributors may be used to endorse or promote products
derived from this software without specific prior written permission.
THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS" AND ANY EXPRESS OR IMPLIED WARRANTIES,
INCLUDING, BUT NOT LIMITED TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE ARE
DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT HOLDER OR CONTRIBUTORS BE LIABLE FOR ANY DIRECT, INDIRECT, INCIDENTAL,
SPECIAL, EXEMPLARY, OR CONSEQUENTIAL DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE GOODS OR
SERVICES; LOSS OF USE, DATA, OR PROFITS; OR BUSINESS INTERRUPTION) HOWEVER CAUSED AND ON ANY THEORY OF LIABILITY,
WHETHER IN CONTRACT, STRICT LIABILITY, OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF THE USE OF
THIS SOFTWARE, EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE. */
"""


@cache
def library() -> str:
    """The code, which gives a page ``vegaEmbed``."""
    if not FILE.exists():
        make()
    return FILE.read_text(encoding="utf-8")


def make() -> None:
    """Write the file, whole or not at all."""
    import vl_convert  # of the build, and of those who work on coldpress

    code = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", _VEGA_LITE)
    # a scope of its own, as its names are short; and no end of a script element, wherever it may stand
    whole = f"{_LICENCE}(() => {{{code}}})();\n".replace("</script", r"<\/script")
    part = FILE.with_suffix(f".{os.getpid()}.part")
    part.write_text(whole, encoding="utf-8")
    part.replace(FILE)
