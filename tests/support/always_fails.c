/* always_fails.c - a test that fails, registered as WILL_FAIL: proof that a red test is seen as red. */
int main(void) {
    return 1;
}
