"""What a case expects of the proxy. An expectation is called with the client and raises `Wrong` if it is not met; its text says what it is.

They are stricter than h2spec, which takes a closed connection for an answer to nearly everything. Here an error of the connection is a
GOAWAY with the right code and then the end, and after an error of a stream the connection serves on.
"""

from hyperframe import frame as frames

from client import Client, Closed, Event, Wrong, describe, error, get, is_reset, ping


class Expectation:
    text = ""

    def __call__(self, client: Client) -> None:
        raise NotImplementedError

    def __str__(self) -> str:
        return self.text


class Works(Expectation):
    """Whatever was sent, nothing comes of it: no stream is reset, and the connection serves on."""

    text = "nothing, and the next request is answered"

    def __init__(self, allowing=lambda _: False):
        # Events that would be wrong otherwise.
        self.allowing = allowing

    def __call__(self, client: Client) -> None:
        stream = client.highest + 1 + client.highest % 2
        client.send(ping(b"still up"), get(stream))

        def judge(event: Event) -> bool:
            if isinstance(event, frames.RstStreamFrame | frames.GoAwayFrame | Closed) and not self.allowing(event):
                raise Wrong(describe(event))
            return isinstance(event, frames.PingFrame) and "ACK" in event.flags

        if client.until(judge).opaque_data != b"still up":
            raise Wrong("the acknowledgement of another PING")
        head, _, _ = client.response(stream)
        if head.status != 200:
            raise Wrong(str(head))


class ConnectionFails(Expectation):
    """An error of the connection (RFC 9113, section 5.4.1)."""

    def __init__(self, *codes: int):
        self.codes = codes
        self.text = f"GOAWAY {' or '.join(map(error, codes))} and the end of the connection"

    def __call__(self, client: Client) -> None:
        highest = client.highest
        goaway = client.until(lambda event: isinstance(event, frames.GoAwayFrame))
        if goaway.error_code not in self.codes or goaway.last_stream_id > highest:
            raise Wrong(describe(goaway))
        # Responses may have been on their way; a second GOAWAY would have to be of the same kind.
        client.until(lambda event: isinstance(event, Closed))


class StreamFails(Expectation):
    """An error of a stream (RFC 9113, section 5.4.2), which the connection and its other streams survive."""

    def __init__(self, *codes: int, stream: int = 1):
        self.codes, self.stream = codes, stream
        self.text = f"RST_STREAM {' or '.join(map(error, codes))} on {stream}, and the next request is answered"

    def __call__(self, client: Client) -> None:
        def judge(event: Event) -> bool:
            if isinstance(event, frames.GoAwayFrame | Closed):
                raise Wrong(describe(event))
            return is_reset(event, self.stream)

        reset = client.until(judge)
        if reset.error_code not in self.codes:
            raise Wrong(describe(reset))
        Works()(client)


class Either(Expectation):
    """One of some, where a rule leaves a choice, or the choice depends on what the proxy has done so far. The first frame decides."""

    def __init__(self, stream: StreamFails, connection: ConnectionFails):
        self.stream, self.connection = stream, connection
        self.text = f"{stream}; or {connection}"

    def __call__(self, client: Client) -> None:
        event = client.until(lambda event: isinstance(event, frames.GoAwayFrame) or is_reset(event, self.stream.stream))
        if isinstance(event, frames.GoAwayFrame):
            if event.error_code not in self.connection.codes:
                raise Wrong(describe(event))
            client.until(lambda event: isinstance(event, Closed))
        else:
            if event.error_code not in self.stream.codes:
                raise Wrong(describe(event))
            Works()(client)


class Answered(Expectation):
    """A response on a stream, and a connection that serves on."""

    def __init__(
        self, status: int = 200, body: bytes | None = None, contains: bytes | None = None, stream: int = 1, lacks: bytes | None = None
    ):
        self.status, self.body, self.contains, self.lacks, self.stream = status, body, contains, lacks, stream
        body_text = f" and the body {body!r}" if body is not None else f" and {contains!r} in the body" if contains else ""
        self.text = f"the status {status}{body_text} on {stream}, and the next request is answered"

    def __call__(self, client: Client) -> None:
        head, body, _ = client.response(self.stream)
        if head.status != self.status:
            raise Wrong(str(head))
        if self.body is not None and body != self.body:
            raise Wrong(f"the body {body!r}")
        if self.contains and self.contains not in body:
            raise Wrong(f"the body {body!r}")
        if self.lacks and self.lacks in body:
            raise Wrong(f"the body {body!r}")
        # What is refused before its body has come is reset with NO_ERROR (RFC 9113, section 8.1).
        Works(lambda event: is_reset(event, self.stream) and event.error_code == 0)(client)


class Ends(Expectation):
    """The end of the connection, with or without words."""

    text = "the end of the connection"

    def __call__(self, client: Client) -> None:
        while client.read():
            pass


class Meets(Expectation):
    """What only a function can say. It raises `Wrong`."""

    def __init__(self, text: str, judge):
        self.text, self.judge = text, judge

    def __call__(self, client: Client) -> None:
        self.judge(client)


def require(true: bool, came: object) -> None:
    if not true:
        raise Wrong(str(came))
