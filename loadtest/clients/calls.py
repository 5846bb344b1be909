"""gRPC with grpcio at both ends: every kind of call, an error, a deadline and a cancel."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc

from stack import LIMIT, Proxy, Stack, expect, until

SERVICE = "test.Echo"


class Origin(grpc.GenericRpcHandler):
    """An origin whose messages are bytes: they take no protobuf."""

    def __init__(self, stack: Stack, tls: bool):
        self.ended: list[str] = []
        self.server = grpc.server(ThreadPoolExecutor(20), handlers=[self])
        if tls:
            pair = (stack.key.read_bytes(), stack.cert.read_bytes())
            self.port = self.server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
        else:
            self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def end(self) -> None:
        self.server.stop(None).wait(LIMIT)

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "Fails": grpc.unary_unary_rpc_method_handler(self.fails),
            "Up": grpc.stream_unary_rpc_method_handler(self.up),
            "Down": grpc.unary_stream_rpc_method_handler(self.down),
            "Both": grpc.stream_stream_rpc_method_handler(self.both),
            "Hangs": grpc.unary_stream_rpc_method_handler(self.hangs),
        }
        return handlers.get(call.method.rsplit("/", 1)[1])

    def unary(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        fields = dict(context.invocation_metadata())
        context.send_initial_metadata([("x-first", fields["x-asked"])])
        context.set_trailing_metadata([("x-last-bin", b"\0\xff")])
        return message[::-1]

    def fails(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata([("x-why", "because")])
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"not {message.decode()}: 100 % ünïcode")

    def up(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        return b"%d" % sum(len(message) for message in messages)

    def down(self, message: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        for number in range(int(message)):
            yield b"%d" % number * 1000

    def both(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        yield from (message.upper() for message in messages)

    def hangs(self, message: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        over = threading.Event()
        # Behind the yield nothing is sure to run: who cancels is not waited for.
        context.add_callback(lambda: (self.ended.append(message.decode()), over.set()))
        yield b"begun"
        over.wait(LIMIT)


def check(origin: Origin, channel: grpc.Channel, to: str) -> None:
    method = lambda name: f"/{SERVICE}/{name}"
    unary = channel.unary_unary(method("Unary"))
    for message in [b"", b"a message", b"m" * 3_000_000]:
        answer, call = unary.with_call(message, timeout=LIMIT, metadata=[("x-asked", "for")])
        expect(answer == message[::-1], f"{to}: another message came back")
        expect(("x-first", "for") in list(call.initial_metadata()), f"{to}: {call.initial_metadata()}")
        expect(("x-last-bin", b"\0\xff") in list(call.trailing_metadata()), f"{to}: {call.trailing_metadata()}")
    try:
        channel.unary_unary(method("Fails"))(b"this", timeout=LIMIT)
        expect(False, f"{to}: an error became a message")
    except grpc.RpcError as error:
        expect(error.code() is grpc.StatusCode.FAILED_PRECONDITION, f"{to}: {error}")
        expect(error.details() == "not this: 100 % ünïcode", f"{to}: {error.details()}")
        expect(("x-why", "because") in list(error.trailing_metadata()), f"{to}: {error.trailing_metadata()}")
    try:
        channel.unary_unary(method("None"))(b"", timeout=LIMIT)
        expect(False, f"{to}: a method that is not there was called")
    except grpc.RpcError as error:
        expect(error.code() is grpc.StatusCode.UNIMPLEMENTED, f"{to}: {error}")
    total = channel.stream_unary(method("Up"))(iter([b"x" * 50_000] * 40), timeout=LIMIT)
    expect(total == b"2000000", f"{to}: {total}")
    down = list(channel.unary_stream(method("Down"))(b"200", timeout=LIMIT))
    expect(down == [b"%d" % number * 1000 for number in range(200)], f"{to}: {len(down)} messages")

    # Each message waits for the answer to the one before.
    answered = threading.Semaphore(1)

    def messages() -> Iterator[bytes]:
        for number in range(50):
            answered.acquire(timeout=LIMIT)
            yield b"message %d" % number

    for number, answer in enumerate(channel.stream_stream(method("Both"))(messages(), timeout=LIMIT)):
        expect(answer == b"MESSAGE %d" % number, f"{to}: {answer}")
        answered.release()
    expect(number == 49, f"{to}: {number}")

    hangs = channel.unary_stream(method("Hangs"))
    begun = time.monotonic()
    call = hangs(f"deadline {to}".encode(), timeout=2)
    try:
        list(call)
        expect(False, f"{to}: a deadline passed unseen")
    except grpc.RpcError as error:
        expect(error.code() is grpc.StatusCode.DEADLINE_EXCEEDED, f"{to}: {error}")
    expect(time.monotonic() - begun < LIMIT / 2, f"{to}: the deadline took long")
    call = hangs(f"cancel {to}".encode(), timeout=LIMIT)
    expect(next(call) == b"begun", f"{to}: it does not begin")
    call.cancel()
    for what in ["deadline", "cancel"]:
        until(f"the origin hears of the {what} over {to}", lambda: f"{what} {to}" in origin.ended)

    # Many calls at a time.
    futures = [unary.future(b"%d" % number, timeout=LIMIT, metadata=[("x-asked", "for")]) for number in range(200)]
    answers = [future.result() for future in futures]
    expect(answers == [(b"%d" % number)[::-1] for number in range(200)], f"{to}: answers of others")


def calls(stack: Stack, proxy: Proxy, origin: Origin) -> str:
    credentials = grpc.ssl_channel_credentials(stack.authority.read_bytes())
    for to, channel in [
        ("TLS", grpc.secure_channel(f"localhost:{proxy.tls}", credentials)),
        ("h2c", grpc.insecure_channel(f"localhost:{proxy.plain}")),
    ]:
        with channel:
            check(origin, channel, to)
    statuses = {line["grpc_status"] for line in proxy.lines() if line["msg"] == "request" and "grpc_status" in line}
    expect({0, 9, 12} <= statuses, f"in the log: {statuses}")
    return "unary, error, up, down, both ways, deadline, cancel, 200 at a time; over TLS and h2c"
