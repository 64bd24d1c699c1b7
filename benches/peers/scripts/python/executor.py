"""concurrent.futures.ProcessPoolExecutor with one worker."""
from concurrent.futures import ProcessPoolExecutor

from measure import echo, enter, measure

if __name__ == "__main__":
    with ProcessPoolExecutor(1, initializer=enter) as pool:
        measure(lambda payload: pool.submit(echo, payload), lambda answer: answer.result())
