# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_hotplugger_global_optspecs
    string join \n config= v/verbose h/help V/version
end

function __fish_hotplugger_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_hotplugger_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_hotplugger_using_subcommand
    set -l cmd (__fish_hotplugger_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c hotplugger -n "__fish_hotplugger_needs_command" -l config -d 'The config file [default: $HOTPLUGGER_CONFIG, else /etc/hotplugger/config.yaml, else config.yaml beside the program]' -r -F
complete -c hotplugger -n "__fish_hotplugger_needs_command" -s v -l verbose -d 'Print more: `udev` its decision, on standard error, even if nothing is done; `check` also the findings that need no action'
complete -c hotplugger -n "__fish_hotplugger_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c hotplugger -n "__fish_hotplugger_needs_command" -s V -l version -d 'Print version'
complete -c hotplugger -n "__fish_hotplugger_needs_command" -f -a "udev" -d 'Handle the uevent in the environment, as udev\'s RUN does'
complete -c hotplugger -n "__fish_hotplugger_needs_command" -f -a "ports" -d 'Print the host\'s USB ports as a tree, with their devices and VMs'
complete -c hotplugger -n "__fish_hotplugger_needs_command" -f -a "status" -d 'Print each VM, the devices in its ports and in its guest, and the last events'
complete -c hotplugger -n "__fish_hotplugger_needs_command" -f -a "attach" -d 'Attach the devices in a port to a VM'
complete -c hotplugger -n "__fish_hotplugger_needs_command" -f -a "detach" -d 'Detach the devices in a port; they stay with the host until they are unplugged or attached manually'
complete -c hotplugger -n "__fish_hotplugger_needs_command" -f -a "move" -d 'Move the devices in a port to another VM'
complete -c hotplugger -n "__fish_hotplugger_needs_command" -f -a "replug" -d 'Switch a port off and on, as if its device were pulled and plugged in again'
complete -c hotplugger -n "__fish_hotplugger_needs_command" -f -a "sync" -d 'Attach devices that are plugged in but not attached, and delete stale objects'
complete -c hotplugger -n "__fish_hotplugger_needs_command" -f -a "simulate" -d 'Print what an event would do, without touching the records or QEMU'
complete -c hotplugger -n "__fish_hotplugger_needs_command" -f -a "install" -d 'Install the udev rule, an example config and the units and hooks that run `sync`'
complete -c hotplugger -n "__fish_hotplugger_needs_command" -f -a "uninstall" -d 'Remove what `install` installed, except the config'
complete -c hotplugger -n "__fish_hotplugger_needs_command" -f -a "edit" -d 'Edit the config, and replace it only by one that can be read'
complete -c hotplugger -n "__fish_hotplugger_needs_command" -f -a "check" -d 'Check the config, rule, state, sockets, guests and permissions, and print how to fix problems'
complete -c hotplugger -n "__fish_hotplugger_needs_command" -f -a "identify" -d 'Show which port a device is plugged into or unplugged from, with the lines for the config'
complete -c hotplugger -n "__fish_hotplugger_needs_command" -f -a "qemu-args" -d 'Print the QEMU arguments for the socket and the controllers of a VM'
complete -c hotplugger -n "__fish_hotplugger_needs_command" -f -a "libvirt-xml" -d 'Print the libvirt domain XML for the socket and the controllers of a VM'
complete -c hotplugger -n "__fish_hotplugger_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand udev" -l config -d 'The config file [default: $HOTPLUGGER_CONFIG, else /etc/hotplugger/config.yaml, else config.yaml beside the program]' -r -F
complete -c hotplugger -n "__fish_hotplugger_using_subcommand udev" -l dry-run -d 'Print what would be done, without touching the records or QEMU'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand udev" -s v -l verbose -d 'Print more: `udev` its decision, on standard error, even if nothing is done; `check` also the findings that need no action'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand udev" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand ports" -l config -d 'The config file [default: $HOTPLUGGER_CONFIG, else /etc/hotplugger/config.yaml, else config.yaml beside the program]' -r -F
complete -c hotplugger -n "__fish_hotplugger_using_subcommand ports" -l json -d 'Prints a JSON object'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand ports" -s v -l verbose -d 'Print more: `udev` its decision, on standard error, even if nothing is done; `check` also the findings that need no action'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand ports" -s h -l help -d 'Print help'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand status" -l events -d 'How many of the last events are shown' -r
complete -c hotplugger -n "__fish_hotplugger_using_subcommand status" -l config -d 'The config file [default: $HOTPLUGGER_CONFIG, else /etc/hotplugger/config.yaml, else config.yaml beside the program]' -r -F
complete -c hotplugger -n "__fish_hotplugger_using_subcommand status" -l json -d 'Prints a JSON object'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand status" -s v -l verbose -d 'Print more: `udev` its decision, on standard error, even if nothing is done; `check` also the findings that need no action'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand status" -s h -l help -d 'Print help'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand attach" -l vm -d 'The VM. It need not list the port' -r
complete -c hotplugger -n "__fish_hotplugger_using_subcommand attach" -l config -d 'The config file [default: $HOTPLUGGER_CONFIG, else /etc/hotplugger/config.yaml, else config.yaml beside the program]' -r -F
complete -c hotplugger -n "__fish_hotplugger_using_subcommand attach" -s v -l verbose -d 'Print more: `udev` its decision, on standard error, even if nothing is done; `check` also the findings that need no action'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand attach" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand detach" -l vm -d 'The VM that has them. Without a port: all its devices, until it is started again, so that its state can be saved' -r
complete -c hotplugger -n "__fish_hotplugger_using_subcommand detach" -l config -d 'The config file [default: $HOTPLUGGER_CONFIG, else /etc/hotplugger/config.yaml, else config.yaml beside the program]' -r -F
complete -c hotplugger -n "__fish_hotplugger_using_subcommand detach" -l keep -d 'Keep the port with the host, whatever is plugged into it, until `attach` or the next boot'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand detach" -s v -l verbose -d 'Print more: `udev` its decision, on standard error, even if nothing is done; `check` also the findings that need no action'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand detach" -s h -l help -d 'Print help'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand move" -l vm -d 'The VM. It need not list the port' -r
complete -c hotplugger -n "__fish_hotplugger_using_subcommand move" -l config -d 'The config file [default: $HOTPLUGGER_CONFIG, else /etc/hotplugger/config.yaml, else config.yaml beside the program]' -r -F
complete -c hotplugger -n "__fish_hotplugger_using_subcommand move" -s v -l verbose -d 'Print more: `udev` its decision, on standard error, even if nothing is done; `check` also the findings that need no action'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand move" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand replug" -l config -d 'The config file [default: $HOTPLUGGER_CONFIG, else /etc/hotplugger/config.yaml, else config.yaml beside the program]' -r -F
complete -c hotplugger -n "__fish_hotplugger_using_subcommand replug" -s v -l verbose -d 'Print more: `udev` its decision, on standard error, even if nothing is done; `check` also the findings that need no action'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand replug" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand sync" -l wait -d 'Wait so many seconds, at most 600, for each VM to run and to answer' -r
complete -c hotplugger -n "__fish_hotplugger_using_subcommand sync" -l config -d 'The config file [default: $HOTPLUGGER_CONFIG, else /etc/hotplugger/config.yaml, else config.yaml beside the program]' -r -F
complete -c hotplugger -n "__fish_hotplugger_using_subcommand sync" -l if-started -d 'Do not wait for a VM without a socket file: for hooks that also run when a VM ends'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand sync" -s v -l verbose -d 'Print more: `udev` its decision, on standard error, even if nothing is done; `check` also the findings that need no action'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand sync" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand simulate" -l action -d 'The action of the event; of a recording, simulate only the events with this action' -r
complete -c hotplugger -n "__fish_hotplugger_using_subcommand simulate" -l config -d 'The config file [default: $HOTPLUGGER_CONFIG, else /etc/hotplugger/config.yaml, else config.yaml beside the program]' -r -F
complete -c hotplugger -n "__fish_hotplugger_using_subcommand simulate" -l original-rules -d 'Simulate the events that the Python original\'s two rules let through: add and remove of everything in usb'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand simulate" -l running -d 'Assume that the VMs run'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand simulate" -l json -d 'Print a JSON array with an object for each event'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand simulate" -s v -l verbose -d 'Print more: `udev` its decision, on standard error, even if nothing is done; `check` also the findings that need no action'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand simulate" -s h -l help -d 'Print help'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand install" -l program -d 'The program that the rule runs, as an absolute path [default: this program]' -r -F
complete -c hotplugger -n "__fish_hotplugger_using_subcommand install" -l root -d 'Install everything below this directory, without touching what runs: for packagers' -r -F
complete -c hotplugger -n "__fish_hotplugger_using_subcommand install" -l config -d 'The config file [default: $HOTPLUGGER_CONFIG, else /etc/hotplugger/config.yaml, else config.yaml beside the program]' -r -F
complete -c hotplugger -n "__fish_hotplugger_using_subcommand install" -l package -d 'Install the files of a package in the directories of packages, below /usr/lib, without a config and without the files that depend on one'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand install" -l dry-run -d 'Print what would be done'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand install" -l systemd -d 'Install the systemd units that run `sync` for a VM when its socket appears or disappears [default: where systemd runs]'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand install" -l no-systemd -d 'Do not install them, and remove them if they are installed'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand install" -l sleep -d 'Install the hook that runs `sync` when the host wakes up, for systemd and elogind [default: where they are installed]'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand install" -l no-sleep -d 'Do not install it, and remove it if it is installed'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand install" -l libvirt -d 'Install the libvirt hook that runs `sync` when a domain has started or ended, for libvirt 6.5 or later [default: where /etc/libvirt exists]'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand install" -l no-libvirt -d 'Do not install it, and remove it if it is installed'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand install" -s v -l verbose -d 'Print more: `udev` its decision, on standard error, even if nothing is done; `check` also the findings that need no action'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand install" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand uninstall" -l root -d 'Install everything below this directory, without touching what runs: for packagers' -r -F
complete -c hotplugger -n "__fish_hotplugger_using_subcommand uninstall" -l config -d 'The config file [default: $HOTPLUGGER_CONFIG, else /etc/hotplugger/config.yaml, else config.yaml beside the program]' -r -F
complete -c hotplugger -n "__fish_hotplugger_using_subcommand uninstall" -l dry-run -d 'Print what would be done'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand uninstall" -s v -l verbose -d 'Print more: `udev` its decision, on standard error, even if nothing is done; `check` also the findings that need no action'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand uninstall" -s h -l help -d 'Print help'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand edit" -l config -d 'The config file [default: $HOTPLUGGER_CONFIG, else /etc/hotplugger/config.yaml, else config.yaml beside the program]' -r -F
complete -c hotplugger -n "__fish_hotplugger_using_subcommand edit" -s v -l verbose -d 'Print more: `udev` its decision, on standard error, even if nothing is done; `check` also the findings that need no action'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand edit" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand check" -l config -d 'The config file [default: $HOTPLUGGER_CONFIG, else /etc/hotplugger/config.yaml, else config.yaml beside the program]' -r -F
complete -c hotplugger -n "__fish_hotplugger_using_subcommand check" -l json -d 'Print all findings as JSON'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand check" -s v -l verbose -d 'Print more: `udev` its decision, on standard error, even if nothing is done; `check` also the findings that need no action'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand check" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand identify" -l count -d 'Ends when this many connectors were seen' -r
complete -c hotplugger -n "__fish_hotplugger_using_subcommand identify" -l timeout -d 'Ends after this time; with exit status 1 if nothing was seen, or less than --count' -r
complete -c hotplugger -n "__fish_hotplugger_using_subcommand identify" -l write -d 'Adds the ports to this VM in the config file. The old text is kept in config.yaml.bak' -r
complete -c hotplugger -n "__fish_hotplugger_using_subcommand identify" -l config -d 'The config file [default: $HOTPLUGGER_CONFIG, else /etc/hotplugger/config.yaml, else config.yaml beside the program]' -r -F
complete -c hotplugger -n "__fish_hotplugger_using_subcommand identify" -l plugged -d 'Shows the devices that are plugged now, and does not wait'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand identify" -l json -d 'Prints a JSON object a line'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand identify" -s v -l verbose -d 'Print more: `udev` its decision, on standard error, even if nothing is done; `check` also the findings that need no action'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand identify" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand qemu-args" -l config -d 'The config file [default: $HOTPLUGGER_CONFIG, else /etc/hotplugger/config.yaml, else config.yaml beside the program]' -r -F
complete -c hotplugger -n "__fish_hotplugger_using_subcommand qemu-args" -l json -d 'Prints a JSON array of the arguments'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand qemu-args" -s v -l verbose -d 'Print more: `udev` its decision, on standard error, even if nothing is done; `check` also the findings that need no action'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand qemu-args" -s h -l help -d 'Print help'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand libvirt-xml" -l config -d 'The config file [default: $HOTPLUGGER_CONFIG, else /etc/hotplugger/config.yaml, else config.yaml beside the program]' -r -F
complete -c hotplugger -n "__fish_hotplugger_using_subcommand libvirt-xml" -s v -l verbose -d 'Print more: `udev` its decision, on standard error, even if nothing is done; `check` also the findings that need no action'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand libvirt-xml" -s h -l help -d 'Print help'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand help; and not __fish_seen_subcommand_from udev ports status attach detach move replug sync simulate install uninstall edit check identify qemu-args libvirt-xml help" -f -a "udev" -d 'Handle the uevent in the environment, as udev\'s RUN does'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand help; and not __fish_seen_subcommand_from udev ports status attach detach move replug sync simulate install uninstall edit check identify qemu-args libvirt-xml help" -f -a "ports" -d 'Print the host\'s USB ports as a tree, with their devices and VMs'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand help; and not __fish_seen_subcommand_from udev ports status attach detach move replug sync simulate install uninstall edit check identify qemu-args libvirt-xml help" -f -a "status" -d 'Print each VM, the devices in its ports and in its guest, and the last events'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand help; and not __fish_seen_subcommand_from udev ports status attach detach move replug sync simulate install uninstall edit check identify qemu-args libvirt-xml help" -f -a "attach" -d 'Attach the devices in a port to a VM'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand help; and not __fish_seen_subcommand_from udev ports status attach detach move replug sync simulate install uninstall edit check identify qemu-args libvirt-xml help" -f -a "detach" -d 'Detach the devices in a port; they stay with the host until they are unplugged or attached manually'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand help; and not __fish_seen_subcommand_from udev ports status attach detach move replug sync simulate install uninstall edit check identify qemu-args libvirt-xml help" -f -a "move" -d 'Move the devices in a port to another VM'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand help; and not __fish_seen_subcommand_from udev ports status attach detach move replug sync simulate install uninstall edit check identify qemu-args libvirt-xml help" -f -a "replug" -d 'Switch a port off and on, as if its device were pulled and plugged in again'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand help; and not __fish_seen_subcommand_from udev ports status attach detach move replug sync simulate install uninstall edit check identify qemu-args libvirt-xml help" -f -a "sync" -d 'Attach devices that are plugged in but not attached, and delete stale objects'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand help; and not __fish_seen_subcommand_from udev ports status attach detach move replug sync simulate install uninstall edit check identify qemu-args libvirt-xml help" -f -a "simulate" -d 'Print what an event would do, without touching the records or QEMU'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand help; and not __fish_seen_subcommand_from udev ports status attach detach move replug sync simulate install uninstall edit check identify qemu-args libvirt-xml help" -f -a "install" -d 'Install the udev rule, an example config and the units and hooks that run `sync`'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand help; and not __fish_seen_subcommand_from udev ports status attach detach move replug sync simulate install uninstall edit check identify qemu-args libvirt-xml help" -f -a "uninstall" -d 'Remove what `install` installed, except the config'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand help; and not __fish_seen_subcommand_from udev ports status attach detach move replug sync simulate install uninstall edit check identify qemu-args libvirt-xml help" -f -a "edit" -d 'Edit the config, and replace it only by one that can be read'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand help; and not __fish_seen_subcommand_from udev ports status attach detach move replug sync simulate install uninstall edit check identify qemu-args libvirt-xml help" -f -a "check" -d 'Check the config, rule, state, sockets, guests and permissions, and print how to fix problems'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand help; and not __fish_seen_subcommand_from udev ports status attach detach move replug sync simulate install uninstall edit check identify qemu-args libvirt-xml help" -f -a "identify" -d 'Show which port a device is plugged into or unplugged from, with the lines for the config'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand help; and not __fish_seen_subcommand_from udev ports status attach detach move replug sync simulate install uninstall edit check identify qemu-args libvirt-xml help" -f -a "qemu-args" -d 'Print the QEMU arguments for the socket and the controllers of a VM'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand help; and not __fish_seen_subcommand_from udev ports status attach detach move replug sync simulate install uninstall edit check identify qemu-args libvirt-xml help" -f -a "libvirt-xml" -d 'Print the libvirt domain XML for the socket and the controllers of a VM'
complete -c hotplugger -n "__fish_hotplugger_using_subcommand help; and not __fish_seen_subcommand_from udev ports status attach detach move replug sync simulate install uninstall edit check identify qemu-args libvirt-xml help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
