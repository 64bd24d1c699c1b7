"""loky's reusable executor with one worker."""
import loky

from measure import echo, enter, measure

if __name__ == "__main__":
    pool = loky.get_reusable_executor(1, initializer=enter)
    measure(lambda payload: pool.submit(echo, payload), lambda answer: answer.result())
    pool.shutdown()
