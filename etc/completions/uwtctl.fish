complete -c uwtctl -f
complete -c uwtctl -n __fish_use_subcommand -a 'status wrappers config firewall'
complete -c uwtctl -n '__fish_seen_subcommand_from wrappers' -a 'list add remove enable disable apply'
complete -c uwtctl -n '__fish_seen_subcommand_from config' -a 'show check migrate'
complete -c uwtctl -n '__fish_seen_subcommand_from list show' -l json -d 'For programs'
complete -c uwtctl -n '__fish_seen_subcommand_from firewall' -a 'render check apply status test lockdown off zone'
