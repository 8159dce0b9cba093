# hotplugger lists the candidates itself, each with its description after a tab. Its exit status is 1 if
# file names are candidates too.
function __hotplugger_complete
    set -l words (commandline -opc)
    set -e words[1]
    hotplugger complete -- $words (commandline -ct) 2>/dev/null
    or __fish_complete_path (commandline -ct)
end
complete -c hotplugger -k -f -a '(__hotplugger_complete)'
