/* The process of a pod's sandbox: it keeps the pod's namespaces open until it is told to end. */
#include <signal.h>
#include <unistd.h>

static void end(int number) { _exit(number == SIGCHLD); }

int main(void) {
    signal(SIGTERM, end);
    signal(SIGINT, end);
    for (;;)
        pause();
}
