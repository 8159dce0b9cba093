# hotplugger lists the candidates itself, each with its description after a tab. Its exit status is 1 if
# file names are candidates too.
_hotplugger() {
    local list word
    COMPREPLY=()
    list=$(hotplugger complete -- "${COMP_WORDS[@]:1:COMP_CWORD-1}" "$2" 2>/dev/null) || compopt -o default
    while IFS=$'\t' read -r word _; do
        if [[ $word && $word == "$2"* ]]; then
            printf -v word %q "$word"
            COMPREPLY+=("$word")
        fi
    done <<<"$list"
}
complete -F _hotplugger -o nosort hotplugger
