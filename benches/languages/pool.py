"""Python's own pool: two workers, 64 bytes, results one by one. Prints calls per second."""
import multiprocessing
import sys
import time


def echo(text):
    return text


def main():
    seconds = float(sys.argv[1])
    text = "x" * 62  # 64 bytes as JSON
    with multiprocessing.Pool(2) as pool:
        list(pool.imap(echo, [text] * 1000, chunksize=1))
        end = time.monotonic() + seconds
        count = 0

        def jobs():
            while time.monotonic() < end:
                yield text

        began = time.monotonic()
        for answer in pool.imap(echo, jobs(), chunksize=1):
            assert answer == text
            count += 1
        print(count / (time.monotonic() - began))


if __name__ == "__main__":
    main()
