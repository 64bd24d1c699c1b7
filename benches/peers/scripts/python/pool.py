"""multiprocessing.Pool with one worker."""
import multiprocessing

from measure import echo, enter, measure

if __name__ == "__main__":
    with multiprocessing.Pool(1, enter) as pool:
        measure(lambda payload: pool.apply_async(echo, (payload,)), lambda answer: answer.get())
