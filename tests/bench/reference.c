/* The least that can be done for a device: what hotplugger's time is measured against.
 *
 *   reference SOCKET add|bind [fd]
 *
 * Run by udev. On that event of a usb_device it sends device_add, by bus and port or by a descriptor
 * that it hands over, and waits for the reply; on remove, device_del. It asks nothing, proves nothing
 * and keeps nothing. Appends CLOCK_MONOTONIC of its start and of sending and reply of device_add to
 * /run/reference.log. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static char answer[65536];

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

/* Reads until a line has one of these words. */
static void await(int qmp, const char *word, const char *other)
{
    size_t length = 0;
    do {
        ssize_t got = read(qmp, answer + length, sizeof answer - 1 - length);
        if (got <= 0)
            fail("read");
        length += got;
        answer[length] = 0;
    } while (answer[length - 1] != '\n' || !(strstr(answer, word) || strstr(answer, other)));
}

static void say(int qmp, const char *command, int descriptor)
{
    char space[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec part = {.iov_base = (void *)command, .iov_len = strlen(command)};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (descriptor >= 0) {
        message.msg_control = space;
        message.msg_controllen = sizeof space;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(header), &descriptor, sizeof descriptor);
    }
    if (sendmsg(qmp, &message, 0) < 0)
        fail("sendmsg");
    await(qmp, "\"return\"", "\"error\"");
}

static int greeted(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    int qmp = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    while (connect(qmp, (struct sockaddr *)&address, sizeof address) < 0) {
        if (errno != EAGAIN && errno != EINTR)
            fail("connect");
        usleep(1000);
    }
    await(qmp, "\"QMP\"", "\"QMP\"");
    say(qmp, "{\"execute\": \"qmp_capabilities\"}\n", -1);
    return qmp;
}

int main(int count, char **arguments)
{
    double start = now(), sent, replied;
    const char *action = getenv("ACTION"), *type = getenv("DEVTYPE"), *path = getenv("DEVPATH");
    if (count < 3 || !action || !type || !path || strcmp(type, "usb_device"))
        return 0;
    int add = !strcmp(action, arguments[2]);
    const char *name = strrchr(path, '/') + 1, *chain = strchr(name, '-');
    if ((!add && strcmp(action, "remove")) || !chain)
        return 0;
    char command[512], set[64] = "";
    int qmp = greeted(arguments[1]);
    if (add && count > 3) {
        int descriptor = open(getenv("DEVNAME"), O_RDWR | O_CLOEXEC);
        if (descriptor < 0)
            fail("open");
        say(qmp, "{\"execute\": \"add-fd\"}\n", descriptor);
        snprintf(set, sizeof set, "/dev/fdset/%d", atoi(strstr(answer, "fdset-id\": ") + 11));
    }
    if (!add)
        snprintf(command, sizeof command, "{\"execute\": \"device_del\", \"arguments\": "
                 "{\"id\": \"ref-%s\"}}\n", name);
    else if (*set)
        snprintf(command, sizeof command, "{\"execute\": \"device_add\", \"arguments\": "
                 "{\"driver\": \"usb-host\", \"id\": \"ref-%s\", \"hostdevice\": \"%s\"}}\n",
                 name, set);
    else
        snprintf(command, sizeof command, "{\"execute\": \"device_add\", \"arguments\": "
                 "{\"driver\": \"usb-host\", \"id\": \"ref-%s\", \"hostbus\": %d, "
                 "\"hostport\": \"%s\"}}\n", name, atoi(name), chain + 1);
    sent = now();
    say(qmp, command, -1);
    replied = now();
    if (add) {
        int log = open("/run/reference.log", O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
        dprintf(log, "%s %.6f %.6f %.6f\n", name, start, sent, replied);
    }
    return 0;
}
