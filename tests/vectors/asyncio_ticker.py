"""100 connections at once, and a 10 ms ticker: asyncio_ticker.py HOST PORT N prints how many answered and the worst gap."""
import asyncio, sys, time

worst = 0.0

async def ticker():
    global worst
    last = time.monotonic()
    while True:
        await asyncio.sleep(0.01)
        now = time.monotonic()
        worst = max(worst, now - last)
        last = now

async def one(i):
    reader, writer = await asyncio.open_connection(sys.argv[1], int(sys.argv[2]))
    writer.write(b"GET /%d HTTP/1.0\r\n\r\n" % i)
    data = await reader.read()
    writer.close()
    return b"200 OK" in data

async def main():
    # The first lookup makes the thread pool; the ticker is to measure connecting.
    await asyncio.get_running_loop().getaddrinfo(sys.argv[1], 80)
    task = asyncio.create_task(ticker())
    begun = time.monotonic()
    done = await asyncio.gather(*[one(i) for i in range(int(sys.argv[3]))], return_exceptions=True)
    for e in done:
        if isinstance(e, BaseException):
            print(repr(e), file=sys.stderr)
    print(sum(d is True for d in done), round(worst * 1000), round((time.monotonic() - begun) * 1000))

asyncio.run(main())
