/* A mock of a vLLM server for benches: one thread, epoll, 127.0.0.1 only, never the slowest part.
 *
 *     engine PORT
 *
 * POST PATH               a chat completion of max_tokens tokens: JSON, or with "stream": true server-sent events
 * GET  /health /v1/models what routers ask an engine
 * GET  /bench/set?KEY=N   settings (below), several joined by '&'
 * GET  /bench/stats       counters as JSON
 *
 * The i-th token is " t" and four digits of i, so a reader can tell order and completeness. As in vLLM the first event
 * carries the role, the last token finish_reason, and a usage event comes before [DONE] where the request includes it.
 * Token i of a stream is due at its start + first_us + i * delay_us: late tokens do not shift later ones.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { DELAY_US, FIRST_US, WHOLE_US, DIGEST, SETTINGS };
static const char *const setting_name[SETTINGS] = {
    "delay_us", /* between the tokens of a stream */
    "first_us", /* before a stream's first token */
    "whole_us", /* before an answer that is not streamed */
    "digest",   /* 1: the content of an answer that is not streamed is a digest of the prompt */
};
static long setting[SETTINGS] = {[DELAY_US] = 10000};

/* left_ns: CLOCK_MONOTONIC when a caller was last seen to leave before its answer was whole. */
static struct { long requests, running, cancelled; uint64_t left_ns; } stats;

enum state { READING, WAITING, STREAMING };
struct connection {
    int fd, keep_alive, usage, watching_out, timed, chunked;
    enum state state;
    char *in, *out;
    size_t in_length, in_room, out_length, out_sent, out_room;
    size_t head, body;                   /* lengths; head 0: not parsed yet */
    size_t chunk_from, chunk_to;         /* a chunked body is decoded in place from one offset to the other */
    long tokens, sent, prompt_tokens;
    uint64_t due, digest;
    struct connection *before, *after;   /* timers, sorted by due */
};
static struct connection *first_timer, *last_timer;
static int poller;

static uint64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* Nearly always the new timer is the latest, so the search from the end is short. */
static void set_timer(struct connection *c, uint64_t due) {
    struct connection *before = last_timer;
    while (before && before->due > due) before = before->before;
    c->due = due;
    c->timed = 1;
    c->before = before;
    c->after = before ? before->after : first_timer;
    *(c->after ? &c->after->before : &last_timer) = c;
    *(before ? &before->after : &first_timer) = c;
}
static void stop_timer(struct connection *c) {
    if (!c->timed) return;
    c->timed = 0;
    *(c->before ? &c->before->after : &first_timer) = c->after;
    *(c->after ? &c->after->before : &last_timer) = c->before;
}

static void make_room(char **buffer, size_t *room, size_t needed) {
    if (needed <= *room) return;
    while (*room < needed) *room = *room ? *room * 2 : 8192;
    if (!(*buffer = realloc(*buffer, *room))) abort();
}

static void watch_out(struct connection *c, int on) {
    if (c->watching_out == on) return;
    c->watching_out = on;
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | (on ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event);
}
static int flush(struct connection *c) {
    while (c->out_sent < c->out_length) {
        ssize_t count = send(c->fd, c->out + c->out_sent, c->out_length - c->out_sent, MSG_NOSIGNAL);
        if (count < 0) {
            if (errno != EAGAIN) return -1;
            watch_out(c, 1);
            return 0;
        }
        c->out_sent += (size_t)count;
    }
    c->out_sent = c->out_length = 0;
    watch_out(c, 0);
    return 0;
}
static int put(struct connection *c, const char *bytes, size_t length) {
    if (!c->out_length) { /* the usual case: straight to the socket */
        ssize_t count = send(c->fd, bytes, length, MSG_NOSIGNAL);
        if (count < 0 && errno != EAGAIN) return -1;
        if (count == (ssize_t)length) return 0;
        if (count > 0) bytes += count, length -= (size_t)count;
    }
    make_room(&c->out, &c->out_room, c->out_length + length);
    memcpy(c->out + c->out_length, bytes, length);
    c->out_length += length;
    return flush(c);
}

static void finish(struct connection *c) {
    c->state = READING;
    stats.running--;
}
static void leave(struct connection *c) {
    stop_timer(c);
    if (c->state != READING) {
        finish(c);
        stats.cancelled++;
        stats.left_ns = now_ns();
    }
    close(c->fd);
    free(c->in);
    free(c->out);
    free(c);
}

static int answer(struct connection *c, int status, const char *type, const char *body) {
    char text[4096];
    int length = snprintf(text, sizeof text,
        "HTTP/1.1 %d %s\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: engine\r\ncontent-length: %zu\r\n"
        "content-type: %s\r\n%s\r\n%s",
        status, status == 200 ? "OK" : "Not Found", strlen(body), type,
        c->keep_alive ? "" : "connection: close\r\n", body);
    return put(c, text, (size_t)length);
}

/* FNV-1a of all "content" strings of the body, which must hold no escapes. */
static uint64_t digest(const char *body, size_t length) {
    uint64_t hash = 14695981039346656037u;
    const char *end = body + length, *at = body;
    while ((at = memmem(at, (size_t)(end - at), "\"content\"", 9))) {
        const char *from = memchr(at + 9, '"', (size_t)(end - at - 9));
        if (!from) break;
        for (at = from + 1; at < end && *at != '"'; at++) hash = (hash ^ (uint8_t)*at) * 1099511628211u;
    }
    return hash;
}

static int answer_whole(struct connection *c) {
    char content[1024], body[2048];
    if (setting[DIGEST])
        snprintf(content, sizeof content, "%016llx", (unsigned long long)c->digest);
    else {
        memset(content, 'w', 640);
        content[640] = 0;
    }
    snprintf(body, sizeof body,
        "{\"id\":\"chatcmpl-%016lx\",\"object\":\"chat.completion\",\"created\":1767225600,\"model\":\"mock-model\","
        "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"%s\"},\"logprobs\":null,"
        "\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":%ld,\"total_tokens\":%ld,\"completion_tokens\":%ld}}",
        stats.requests, content, c->prompt_tokens, c->prompt_tokens + c->tokens, c->tokens);
    return answer(c, 200, "application/json", body);
}

/* Append one server-sent event as one chunk of the HTTP body; returns the length. */
static int put_event(char *to, const char *choices, const char *rest) {
    char event[1024];
    int length = snprintf(event, sizeof event,
        "data: {\"id\":\"chatcmpl-0000000000000001\",\"object\":\"chat.completion.chunk\",\"created\":1767225600,"
        "\"model\":\"mock-model\",\"choices\":[%s]%s}\n\n", choices, rest);
    return sprintf(to, "%x\r\n%s\r\n", length, event);
}
static int put_token(char *to, const char *delta, const char *reason) {
    char choice[512];
    snprintf(choice, sizeof choice, "{\"index\":0,\"delta\":%s,\"logprobs\":null,\"finish_reason\":%s}", delta, reason);
    return put_event(to, choice, "");
}
/* The event of a token that is not the last; all streams have it in common but for the digits. */
static char token_event[2048];
static int token_length, token_digits;
static int put_plain_token(char *to, long number) {
    if (!token_length) {
        token_length = put_token(token_event, "{\"content\":\" t0000\"}", "null");
        token_digits = (int)(strstr(token_event, " t0000") - token_event) + 2;
    }
    memcpy(to, token_event, (size_t)token_length);
    for (int i = 3; i >= 0; i--, number /= 10) to[token_digits + i] = (char)('0' + number % 10);
    return token_length;
}
/* Send the next token, with all that goes before the first and after the last. */
static int stream_on(struct connection *c) {
    char text[8192], part[256];
    int length = 0, last = c->sent + 1 == c->tokens;
    if (c->sent == 0) {
        length += sprintf(text,
            "HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: engine\r\n"
            "content-type: text/event-stream; charset=utf-8\r\n%stransfer-encoding: chunked\r\n\r\n",
            c->keep_alive ? "" : "connection: close\r\n");
        length += put_token(text + length, "{\"role\":\"assistant\",\"content\":\"\"}", "null");
    }
    if (!last) length += put_plain_token(text + length, c->sent++);
    else {
        snprintf(part, sizeof part, "{\"content\":\" t%04ld\"}", c->sent++ % 10000);
        length += put_token(text + length, part, "\"length\"");
        snprintf(part, sizeof part, ",\"usage\":{\"prompt_tokens\":%ld,\"total_tokens\":%ld,\"completion_tokens\":%ld}",
                 c->prompt_tokens, c->prompt_tokens + c->tokens, c->tokens);
        if (c->usage) length += put_event(text + length, "", part);
        length += sprintf(text + length, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
    }
    return put(c, text, (size_t)length);
}

/* The members a completion depends on stand before or behind the messages: look at both ends only. */
static const char *member(const char *body, size_t length, const char *name) {
    size_t end = length < 2048 ? length : 2048, size = strlen(name);
    const char *at = memmem(body, end, name, size);
    if (!at) at = memmem(body + length - end, end, name, size);
    if (!at) return NULL;
    for (at += size; *at == ':' || *at == ' '; at++) {}
    return at;
}
static int is_true(const char *value) { return value && !strncmp(value, "true", 4); }

/* Send what is due. -1: close the connection. */
static int go_on(struct connection *c) {
    if (c->state == WAITING) {
        finish(c);
        return answer_whole(c);
    }
    if (stream_on(c) < 0) return -1;
    if (c->sent == c->tokens) finish(c);
    else set_timer(c, c->due + (uint64_t)setting[DELAY_US] * 1000);
    return 0;
}

static int complete(struct connection *c) {
    char *body = c->in + c->head, kept = body[c->body];
    body[c->body] = 0; /* strtol stops here; there is always room for it */
    const char *tokens = member(body, c->body, "\"max_tokens\"");
    if (!tokens) tokens = member(body, c->body, "\"max_completion_tokens\"");
    c->tokens = tokens ? strtol(tokens, NULL, 10) : 16;
    if (c->tokens < 1) c->tokens = 1;
    int stream = is_true(member(body, c->body, "\"stream\""));
    c->usage = is_true(member(body, c->body, "\"include_usage\""));
    body[c->body] = kept;
    if (setting[DIGEST]) c->digest = digest(body, c->body);
    c->prompt_tokens = (long)(c->body / 4);
    c->sent = 0;
    c->state = stream ? STREAMING : WAITING;
    stats.requests++;
    stats.running++;
    long delay = setting[stream ? FIRST_US : WHOLE_US];
    c->due = now_ns() + (uint64_t)delay * 1000;
    if (!delay) return go_on(c);
    set_timer(c, c->due);
    return 0;
}

static int serve_get(struct connection *c, const char *path, size_t length) {
    char text[512];
    if (length >= 10 && !memcmp(path, "/bench/set", 10)) {
        for (int i = 0; i < SETTINGS; i++) {
            const char *at = memmem(path, length, setting_name[i], strlen(setting_name[i]));
            if (at) setting[i] = strtol(at + strlen(setting_name[i]) + 1, NULL, 10);
        }
        return answer(c, 200, "application/json", "{}");
    }
    if (length == 12 && !memcmp(path, "/bench/stats", 12)) {
        snprintf(text, sizeof text,
                 "{\"requests\":%ld,\"running\":%ld,\"cancelled\":%ld,\"left_ns\":%llu}", stats.requests,
                 stats.running, stats.cancelled, (unsigned long long)stats.left_ns);
        return answer(c, 200, "application/json", text);
    }
    if (length == 7 && !memcmp(path, "/health", 7)) return answer(c, 200, "text/plain", "");
    if (length == 10 && !memcmp(path, "/v1/models", 10))
        return answer(c, 200, "application/json",
                      "{\"object\":\"list\",\"data\":[{\"id\":\"mock-model\",\"object\":\"model\",\"created\":1767225600,"
                      "\"owned_by\":\"vllm\",\"root\":\"mock-model\",\"parent\":null,\"max_model_len\":1000000}]}");
    return answer(c, 404, "application/json", "{\"error\":{\"message\":\"not found\",\"code\":404}}");
}

/* -1: broken, 0: not whole yet, 1: c->head and c->body are known. */
static int parse_head(struct connection *c) {
    char *end = memmem(c->in, c->in_length, "\r\n\r\n", 4);
    if (!end) return c->in_length > 65536 ? -1 : 0;
    c->head = (size_t)(end + 4 - c->in);
    c->body = 0;
    c->chunked = 0;
    char *line = memchr(c->in, '\n', c->head);
    c->keep_alive = line - c->in > 9 && memcmp(line - 9, "HTTP/1.0", 8) != 0;
    for (line++; line < end; line = (char *)memchr(line, '\n', (size_t)(c->in + c->head - line)) + 1) {
        if (!strncasecmp(line, "content-length:", 15)) c->body = strtoul(line + 15, NULL, 10);
        else if (!strncasecmp(line, "transfer-encoding:", 18)) c->chunked = 1;
        else if (!strncasecmp(line, "connection: close", 17)) c->keep_alive = 0;
        else if (!strncasecmp(line, "connection: keep-alive", 22)) c->keep_alive = 1;
        else if (!strncasecmp(line, "expect:", 7) && put(c, "HTTP/1.1 100 Continue\r\n\r\n", 25) < 0) return -1;
    }
    c->chunk_from = c->chunk_to = c->head;
    return 1;
}
/* Decode whole chunks. -1: broken, 0: not whole yet, 1: c->body is known and chunk_from is behind the body. */
static int decode_chunks(struct connection *c) {
    for (;;) {
        char *line = c->in + c->chunk_from, *end = memmem(line, c->in_length - c->chunk_from, "\r\n", 2), *stop;
        if (!end) return 0;
        size_t size = strtoul(line, &stop, 16), from = (size_t)(end + 2 - c->in);
        if (stop == line) return -1;
        if (c->in_length < from + size + 2) return 0;
        memmove(c->in + c->chunk_to, c->in + from, size);
        c->chunk_to += size;
        c->chunk_from = from + size + 2;
        if (!size) break;
    }
    c->body = c->chunk_to - c->head;
    return 1;
}

/* Serve the whole requests that lie in the buffer, one after another. -1: close the connection. */
static int serve(struct connection *c) {
    while (c->state == READING && c->in_length) {
        int found = c->head ? 1 : parse_head(c);
        if (found <= 0) return found;
        if (c->chunked && (found = decode_chunks(c)) <= 0) return found;
        size_t whole = c->chunked ? c->chunk_from : c->head + c->body;
        make_room(&c->in, &c->in_room, whole + 4096);
        if (c->in_length < whole) return 0;
        char *path = memchr(c->in, ' ', c->head), *end = path ? memchr(path + 1, ' ', c->head - 8) : NULL;
        if (!end) return -1;
        if (*c->in == 'G' ? serve_get(c, path + 1, (size_t)(end - path - 1)) : complete(c)) return -1;
        memmove(c->in, c->in + whole, c->in_length - whole);
        c->in_length -= whole;
        c->head = 0;
        if (c->state == READING && !c->keep_alive) return -1;
    }
    return 0;
}
static int on_input(struct connection *c) {
    for (;;) {
        make_room(&c->in, &c->in_room, c->in_length + 4096);
        size_t room = c->in_room - c->in_length - 1;
        ssize_t count = recv(c->fd, c->in + c->in_length, room, 0);
        if (count == 0) return -1;
        if (count < 0) return errno == EAGAIN ? 0 : -1;
        c->in_length += (size_t)count;
        if (serve(c) < 0) return -1;
        if ((size_t)count < room) return 0;
    }
}

static int listen_on(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(fd, (void *)&at, sizeof at) || listen(fd, 4096)) {
        perror("engine");
        exit(1);
    }
    return fd;
}
static void welcome(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct connection *c = calloc(1, sizeof *c);
        if (!c) abort();
        c->fd = fd;
        struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = c};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    }
}
static void on_event(struct connection *c, uint32_t events) {
    int broken = (events & (EPOLLERR | EPOLLHUP)) != 0;
    if (!broken && (events & EPOLLOUT)) broken = flush(c) < 0;
    if (!broken && (events & (EPOLLIN | EPOLLRDHUP))) broken = on_input(c) < 0;
    if (broken) leave(c);
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: engine PORT\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    int listener = listen_on(atoi(argv[1]));
    poller = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN}, events[256];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        struct timespec wait = {0, 0};
        uint64_t now = now_ns();
        if (first_timer && first_timer->due > now) {
            wait.tv_sec = (time_t)((first_timer->due - now) / 1000000000u);
            wait.tv_nsec = (long)((first_timer->due - now) % 1000000000u);
        }
        int count = epoll_pwait2(poller, events, 256, first_timer ? &wait : NULL, NULL);
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr) on_event(events[i].data.ptr, events[i].events);
            else welcome(listener);
        }
        for (now = now_ns(); first_timer && first_timer->due <= now;) {
            struct connection *c = first_timer;
            stop_timer(c);
            if (go_on(c) < 0 || (c->state == READING && (!c->keep_alive || serve(c) < 0))) leave(c);
        }
    }
}
