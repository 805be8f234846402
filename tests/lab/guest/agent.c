// The agent: PID 1 of an emulated host once its root is mounted.
//
// It runs one command as root and carries its standard streams, terminal size, signals and exit status over a single
// virtio-serial port named "lab" (the runner's side of the protocol is paddock_lab/channel.py). One channel with
// frames, rather than one serial port per stream, keeps the order of stdout and stderr, tells end-of-file from
// "nothing yet", and needs no guess about when the last byte has arrived.
//
// A frame: one byte of kind, four bytes of payload length (little-endian), payload.
//   to the agent:    S run guest-setup with these arguments (each NUL-terminated);  C working directory;  A argument;
//                    E NAME=value;  T use a terminal;  W rows, columns (u16 each);  G go;  I stdin bytes;  F end of stdin;
//                    K signal number (u8);  D describe the state on the console;  P power off
//   from the agent:  H here (agent is up);  R ready (guest-setup done);  O stdout bytes;  N stderr bytes;
//                    X exit status (u8);  M message: the command could not be started, and why;  D state described
//
// Single-threaded, one poll loop. When the runner's side of the port goes away the host powers off.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>
#include <utmp.h>

enum { CHUNK = 65536, FRAME_MAX = 1 << 22, STDIN_MAX = 1 << 20 };

struct bytes {
    char *data;
    size_t len, cap;
};

struct list {
    char **items;
    size_t len;
};

static int port = -1;                             // the virtio-serial port
static int in_fd = -1, out_fd = -1, err_fd = -1;  // our ends of the command's streams (or the pty's master, in in_fd and out_fd)
static int use_tty;
static struct winsize window = {.ws_row = 24, .ws_col = 80};
static pid_t command = -1;
static int in_eof;                                // the runner closed stdin; close in_fd once `input` is written
static struct bytes input;                        // stdin bytes the command has not taken yet
static struct bytes received;                     // bytes from the port, not yet a whole frame
static struct list arguments, environment;
static char *directory;

static void power_off(void) {
    sync();
    reboot(RB_POWER_OFF);
    for (;;) pause();
}

static void console(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("lab-agent: ", stdout);
    vprintf(format, args);
    va_end(args);
    puts("");
    fflush(stdout);
}

static void *checked(void *memory) {
    if (!memory) {
        console("out of memory");
        power_off();
    }
    return memory;
}

static void append(struct bytes *to, const void *data, size_t len) {
    if (to->len + len > to->cap) {
        to->cap = (to->len + len) * 2;
        to->data = checked(realloc(to->data, to->cap));
    }
    memcpy(to->data + to->len, data, len);
    to->len += len;
}

static void drop_front(struct bytes *from, size_t len) {
    memmove(from->data, from->data + len, from->len - len);
    from->len -= len;
}

static void push(struct list *to, char *item) {
    to->items = checked(realloc(to->items, (to->len + 2) * sizeof *to->items));
    to->items[to->len++] = item;
    to->items[to->len] = NULL;
}

// Blocking write of a whole buffer; the port's other end is the runner, without which there is nothing left to do.
static void write_port(const void *data, size_t len) {
    const char *at = data;
    while (len) {
        ssize_t n = write(port, at, len);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) {
            struct pollfd wait = {.fd = port, .events = POLLOUT};
            poll(&wait, 1, -1);
            if (wait.revents & POLLHUP) power_off();
            continue;
        }
        if (n <= 0) power_off();
        at += n;
        len -= (size_t)n;
    }
}

static void send_frame(char kind, const void *data, uint32_t len) {
    unsigned char head[5] = {(unsigned char)kind, len & 255, len >> 8 & 255, len >> 16 & 255, len >> 24 & 255};
    write_port(head, sizeof head);
    if (len) write_port(data, len);
}

static void send_failure(const char *format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (n >= (int)sizeof text) n = sizeof text - 1;
    console("%s", text);
    send_frame('M', text, (uint32_t)n);
}

// Without udev there is no /dev/virtio-ports; sysfs knows which port carries our name.
static int open_port(void) {
    DIR *ports = opendir("/sys/class/virtio-ports");
    struct dirent *entry;
    int fd = -1;
    while (ports && fd < 0 && (entry = readdir(ports))) {
        char path[300], name[16] = "";
        snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
        FILE *file = fopen(path, "re");
        if (!file) continue;
        if (fgets(name, sizeof name, file) && !strcmp(name, "lab\n")) {
            snprintf(path, sizeof path, "/dev/%s", entry->d_name);
            fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
        }
        fclose(file);
    }
    if (ports) closedir(ports);
    return fd;
}

static void write_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return;
    if (write(fd, text, strlen(text)) < 0) console("%s: %s", path, strerror(errno));
    close(fd);
}

// Processes, then the kernel's blocked tasks and the CPUs' stacks, on the console: what a missed deadline needs.
static void describe_state(void) {
    static const char *const argv[] = {"busybox", "ps", "-o", "pid,ppid,stat,args", NULL};
    write_file("/proc/sys/kernel/printk", "7");
    console("state of the host at the deadline:");
    pid_t pid = fork();
    if (pid == 0) {
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        execv("/bin/busybox", (char *const *)argv);
        _exit(127);
    }
    if (pid > 0) waitpid(pid, NULL, 0);
    // The kernel writes past the terminal's buffer: what is still in there would be torn apart by its lines.
    tcdrain(STDOUT_FILENO);
    write_file("/proc/sysrq-trigger", "w");
    write_file("/proc/sysrq-trigger", "l");
    tcdrain(STDOUT_FILENO);
    send_frame('D', NULL, 0);
}

static void guest_setup(char *data, size_t len) {
    char *argv[6] = {"/run/lab/guest-setup"};
    size_t count = 1, at = 0;
    while (at < len && count < 5) {
        argv[count++] = data + at;
        at += strlen(data + at) + 1;
    }
    pid_t pid = fork();
    if (pid == 0) {
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        dup2(1, 2);
        execv(argv[0], argv);
        _exit(127);
    }
    int status = -1;
    if (pid < 0 || waitpid(pid, &status, 0) < 0 || status != 0)
        send_failure("guest-setup failed (wait status %#x), see the console log", status);
    else
        send_frame('R', NULL, 0);
}

static void in_child(int in, int out, int err) {
    if (use_tty) {
        if (login_tty(in) < 0) _exit(126);
    } else {
        setsid();
        dup2(in, 0);
        dup2(out, 1);
        dup2(err, 2);
    }
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    if (directory && chdir(directory) < 0) {
        dprintf(2, "lab: cannot enter %s: %s\n", directory, strerror(errno));
        _exit(125);
    }
    environ = environment.items;
    execvp(arguments.items[0], arguments.items);
    dprintf(2, "lab: %s: %s\n", arguments.items[0], strerror(errno));
    _exit(errno == ENOENT ? 127 : 126);
}

static void start_command(void) {
    int in[2] = {-1, -1}, out[2] = {-1, -1}, err[2] = {-1, -1};
    if (!arguments.len) {
        send_failure("no command given");
        return;
    }
    if (!environment.items) environment.items = checked(calloc(1, sizeof(char *)));
    // execvp() looks in our PATH, which must be the command's.
    for (size_t i = 0; i < environment.len; i++)
        if (!strncmp(environment.items[i], "PATH=", 5)) setenv("PATH", environment.items[i] + 5, 1);
    int failed = use_tty ? openpty(&in[1], &in[0], NULL, NULL, &window)
                         : pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC);
    if (failed || (command = fork()) < 0) {
        send_failure("cannot start the command: %s", strerror(errno));
        return;
    }
    if (command == 0) in_child(in[0], out[1], err[1]);
    close(in[0]);
    in_fd = in[1];
    if (use_tty) {
        out_fd = in_fd;
    } else {
        close(out[1]);
        close(err[1]);
        out_fd = out[0];
        err_fd = err[0];
        fcntl(err_fd, F_SETFL, O_NONBLOCK);
    }
    fcntl(in_fd, F_SETFL, O_NONBLOCK);
    fcntl(out_fd, F_SETFL, O_NONBLOCK);
}

static void close_input(void) {
    if (in_fd >= 0 && in_fd != out_fd) close(in_fd);
    in_fd = -1;
    input.len = 0;
}

static void handle_frame(char kind, char *data, size_t len) {
    switch (kind) {
    case 'S': guest_setup(data, len); break;
    case 'C': directory = checked(strndup(data, len)); break;
    case 'A': push(&arguments, checked(strndup(data, len))); break;
    case 'E': push(&environment, checked(strndup(data, len))); break;
    case 'T': use_tty = 1; break;
    case 'W':
        if (len < 4) break;
        window.ws_row = (unsigned short)((unsigned char)data[0] | (unsigned char)data[1] << 8);
        window.ws_col = (unsigned short)((unsigned char)data[2] | (unsigned char)data[3] << 8);
        if (use_tty && out_fd >= 0) ioctl(out_fd, TIOCSWINSZ, &window);
        break;
    case 'G': start_command(); break;
    case 'I':
        if (in_fd >= 0) append(&input, data, len);
        break;
    case 'F': in_eof = 1; break;
    case 'K':
        if (len == 1 && command > 0) kill(-command, (unsigned char)data[0]);
        break;
    case 'D': describe_state(); break;
    case 'P': power_off(); break;
    default: console("unknown frame kind %d", kind);
    }
}

// Reads what the port has; returns after at most one chunk.
static void read_port(void) {
    static char chunk[CHUNK];
    ssize_t n = read(port, chunk, sizeof chunk);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) power_off();
    append(&received, chunk, (size_t)n);
    while (received.len >= 5) {
        const unsigned char *head = (const unsigned char *)received.data;
        size_t len = head[1] | (size_t)head[2] << 8 | (size_t)head[3] << 16 | (size_t)head[4] << 24;
        if (len > FRAME_MAX) {
            console("frame of %zu bytes", len);
            power_off();
        }
        if (received.len < 5 + len) break;
        char *data = checked(calloc(1, len + 1));  // a terminating NUL, for the frames that carry text
        memcpy(data, received.data + 5, len);
        char kind = received.data[0];
        drop_front(&received, 5 + len);
        handle_frame(kind, data, len);
        free(data);
    }
}

static void write_input(void) {
    while (in_fd >= 0 && input.len) {
        ssize_t n = write(in_fd, input.data, input.len);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) return;
        if (n < 0) {
            close_input();  // the command closed its stdin
            return;
        }
        drop_front(&input, (size_t)n);
    }
    // A terminal's end-of-file is a character, so a pty stays open.
    if (in_eof && !use_tty) close_input();
}

// Forwards one chunk of output; returns 0 when there is nothing (more) to read, having closed the stream at its end.
static int forward(int *fd, char kind) {
    static char chunk[CHUNK];
    if (*fd < 0) return 0;
    ssize_t n = read(*fd, chunk, sizeof chunk);
    if (n > 0) {
        send_frame(kind, chunk, (uint32_t)n);
        return 1;
    }
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    if (*fd == in_fd) in_fd = -1;  // the pty is one descriptor for both ways; EIO means its last user is gone
    close(*fd);
    *fd = -1;
    return 0;
}

static void reap(void) {
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        if (pid != command) continue;
        command = -1;
        // What the command wrote before it ended is in the pipes; a background process may keep them open for ever.
        while (forward(&out_fd, 'O') | forward(&err_fd, 'N')) {}
        sync();  // files written to the shares must be on the outside before the status is
        unsigned char code = (unsigned char)(WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status));
        send_frame('X', &code, 1);
    }
}

int main(void) {
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGCHLD);
    sigprocmask(SIG_BLOCK, &mask, NULL);
    signal(SIGPIPE, SIG_IGN);
    int signals = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
    port = open_port();
    if (port < 0 || signals < 0) {
        console("no virtio-serial port named lab: %s", strerror(errno));
        power_off();
    }
    send_frame('H', NULL, 0);
    for (;;) {
        struct pollfd fds[] = {
            {.fd = port, .events = input.len < STDIN_MAX ? POLLIN : 0},
            {.fd = signals, .events = POLLIN},
            {.fd = input.len ? in_fd : -1, .events = POLLOUT},
            {.fd = out_fd, .events = POLLIN},
            {.fd = err_fd, .events = POLLIN},
        };
        if (poll(fds, 5, -1) < 0 && errno != EINTR) power_off();
        if (fds[0].revents & (POLLIN | POLLHUP | POLLERR)) read_port();
        if (input.len || in_eof) write_input();
        if (fds[3].revents) forward(&out_fd, 'O');
        if (fds[4].revents) forward(&err_fd, 'N');
        if (fds[1].revents) {
            struct signalfd_siginfo info;
            while (read(signals, &info, sizeof info) > 0) {}
            reap();
        }
    }
}
