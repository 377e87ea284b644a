"use strict";
// Asks for a streamed answer, and shows its events at a pace that a person can follow.
const stream = (() => {
  const MOST_BEHIND = 150;
  const still = matchMedia("(prefers-reduced-motion: reduce)");

  // Events of a stream: the name, and the data as JSON; comments are skipped.
  async function* events(answer) {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let buffer = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (buffer + value).split("\n\n");
      buffer = parts.pop();
      for (const part of parts) {
        let name = "", data = "";
        for (const line of part.split("\n")) {
          if (line.startsWith("event: ")) name = line.slice(7);
          if (line.startsWith("data: ")) data += line.slice(6);
        }
        if (data && data !== "[DONE]") yield [name, JSON.parse(data)];
      }
    }
  }

  async function* answered(body, signal) {
    const answer = await app.ask("v1/chat/completions", {
      method: "POST", signal, headers: { "content-type": "application/json" },
      body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    });
    if (!answer.ok) throw new Error(await app.messageOf(answer));
    for await (const [name, data] of events(answer)) {
      if (data.error) throw new Error(data.error.message);
      yield [name, data];
    }
  }

  // Throws once the run is stopped, so that nothing of it is shown after that.
  async function pause(ms, signal) {
    await new Promise((done) => { setTimeout(done, still.matches ? 0 : ms); });
    check(signal);
  }

  function check(signal) {
    if (signal.aborted) throw new DOMException("stopped", "AbortError");
  }

  // Shows events one after the other, each for a moment, so that a person can follow a fast pair.
  // `show` returns the milliseconds. Whatever falls behind its stream shows the rest without a pause.
  async function paced(body, signal, show) {
    const waiting = [];
    let wake = () => undefined, hasEnded = false, failure = null;
    (async () => {
      try {
        for await (const event of answered(body, signal)) {
          waiting.push(event);
          wake();
        }
      } catch (error) {
        failure = error;
      }
      hasEnded = true;
      wake();
    })();
    while (waiting.length || !hasEnded) {
      check(signal);
      if (!waiting.length) await new Promise((resolve) => { wake = resolve; });
      else {
        const ms = await show(...waiting.shift());
        if (ms && waiting.length < MOST_BEHIND) await pause(ms, signal);
      }
    }
    if (failure) throw failure;
  }

  return { pause, paced, still };
})();
