# shellcheck shell=bash
# bash completion for uwt(1): its options, then the command's own completion.
_uwt() {
    local cur prev i word
    cur=${COMP_WORDS[COMP_CWORD]}
    prev=${COMP_WORDS[COMP_CWORD - 1]}
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        case $word in
            -a | --address | -P | --port | -u | --user | -p | --pass | --level | --dns | --config) ((i++)) ;;
            --) ((i++)); break ;;
            -*) ;;
            *) break ;;
        esac
    done
    if ((i < COMP_CWORD)) || { ((i == COMP_CWORD)) && [[ $cur != -* ]]; }; then
        case $prev in
            --level | --dns | --config | -a | --address | -P | --port | -u | --user | -p | --pass) ;;
            *)
                _command_offset "$i"
                return
                ;;
        esac
    fi
    case $prev in
        --level) mapfile -t COMPREPLY < <(compgen -W 'auto preload netns' -- "$cur") ;;
        --dns) mapfile -t COMPREPLY < <(compgen -W 'virtual resolve refuse' -- "$cur") ;;
        --config) mapfile -t COMPREPLY < <(compgen -f -- "$cur") ;;
        -a | --address | -P | --port | -u | --user | -p | --pass) COMPREPLY=() ;;
        *)
            mapfile -t COMPREPLY < <(compgen -W '-a --address -P --port -u --user -p --pass -i --isolate
                --isolate=pid --isolate=tree --isolate=app --isolate=destination --isolate=connection --isolate=none
                --level --dns --config -d --debug -q --quiet --explain --shell -h --help -V --version' -- "$cur")
            ;;
    esac
}
complete -F _uwt uwt
