# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_glaneur_global_optspecs
    string join \n config= h/help V/version
end

function __fish_glaneur_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_glaneur_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_glaneur_using_subcommand
    set -l cmd (__fish_glaneur_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c glaneur -n "__fish_glaneur_needs_command" -l config -d 'Configuration; else $GLANEUR_CONFIG, else ./config.toml, else /etc/glaneur/config.toml' -r -F
complete -c glaneur -n "__fish_glaneur_needs_command" -s h -l help -d 'Print help'
complete -c glaneur -n "__fish_glaneur_needs_command" -s V -l version -d 'Print version'
complete -c glaneur -n "__fish_glaneur_needs_command" -f -a "serve" -d 'Runs the daemon (the default)'
complete -c glaneur -n "__fish_glaneur_needs_command" -f -a "check" -d 'Checks the configuration and prints every mistake at once, as file:line:column'
complete -c glaneur -n "__fish_glaneur_needs_command" -f -a "explain" -d 'Tells the whole life of one product or batch, from the ledger'
complete -c glaneur -n "__fish_glaneur_needs_command" -f -a "circuits" -d 'Shows each circuit of the running daemon: exit, age, latency, bytes, blocks by shop'
complete -c glaneur -n "__fish_glaneur_needs_command" -f -a "tor" -d 'Looks after Tor'
complete -c glaneur -n "__fish_glaneur_needs_command" -f -a "generate" -d 'Writes manual page, completions, journal catalogue and table of events below a folder'
complete -c glaneur -n "__fish_glaneur_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c glaneur -n "__fish_glaneur_using_subcommand serve" -l config -d 'Configuration; else $GLANEUR_CONFIG, else ./config.toml, else /etc/glaneur/config.toml' -r -F
complete -c glaneur -n "__fish_glaneur_using_subcommand serve" -s h -l help -d 'Print help'
complete -c glaneur -n "__fish_glaneur_using_subcommand check" -l config -d 'Configuration; else $GLANEUR_CONFIG, else ./config.toml, else /etc/glaneur/config.toml' -r -F
complete -c glaneur -n "__fish_glaneur_using_subcommand check" -s h -l help -d 'Print help'
complete -c glaneur -n "__fish_glaneur_using_subcommand explain" -l config -d 'Configuration; else $GLANEUR_CONFIG, else ./config.toml, else /etc/glaneur/config.toml' -r -F
complete -c glaneur -n "__fish_glaneur_using_subcommand explain" -s h -l help -d 'Print help'
complete -c glaneur -n "__fish_glaneur_using_subcommand circuits" -l at -d 'Where the daemon listens, if not at `server.listen`' -r
complete -c glaneur -n "__fish_glaneur_using_subcommand circuits" -l config -d 'Configuration; else $GLANEUR_CONFIG, else ./config.toml, else /etc/glaneur/config.toml' -r -F
complete -c glaneur -n "__fish_glaneur_using_subcommand circuits" -l json -d 'The answer of the API as it is'
complete -c glaneur -n "__fish_glaneur_using_subcommand circuits" -s h -l help -d 'Print help'
complete -c glaneur -n "__fish_glaneur_using_subcommand tor; and not __fish_seen_subcommand_from release check help" -l config -d 'Configuration; else $GLANEUR_CONFIG, else ./config.toml, else /etc/glaneur/config.toml' -r -F
complete -c glaneur -n "__fish_glaneur_using_subcommand tor; and not __fish_seen_subcommand_from release check help" -s h -l help -d 'Print help'
complete -c glaneur -n "__fish_glaneur_using_subcommand tor; and not __fish_seen_subcommand_from release check help" -f -a "release" -d 'Lets tor attach streams by itself again, after a daemon with tor.binding = "strict" was killed'
complete -c glaneur -n "__fish_glaneur_using_subcommand tor; and not __fish_seen_subcommand_from release check help" -f -a "check" -d 'Says whether Tor is there, bootstrapped, isolating, without Conflux, and which line of torrc mends what is wrong'
complete -c glaneur -n "__fish_glaneur_using_subcommand tor; and not __fish_seen_subcommand_from release check help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c glaneur -n "__fish_glaneur_using_subcommand tor; and __fish_seen_subcommand_from release" -l config -d 'Configuration; else $GLANEUR_CONFIG, else ./config.toml, else /etc/glaneur/config.toml' -r -F
complete -c glaneur -n "__fish_glaneur_using_subcommand tor; and __fish_seen_subcommand_from release" -l quiet -d 'Says nothing where there is nothing to release, and passes over a configuration with mistakes'
complete -c glaneur -n "__fish_glaneur_using_subcommand tor; and __fish_seen_subcommand_from release" -s h -l help -d 'Print help'
complete -c glaneur -n "__fish_glaneur_using_subcommand tor; and __fish_seen_subcommand_from check" -l config -d 'Configuration; else $GLANEUR_CONFIG, else ./config.toml, else /etc/glaneur/config.toml' -r -F
complete -c glaneur -n "__fish_glaneur_using_subcommand tor; and __fish_seen_subcommand_from check" -s h -l help -d 'Print help'
complete -c glaneur -n "__fish_glaneur_using_subcommand tor; and __fish_seen_subcommand_from help" -f -a "release" -d 'Lets tor attach streams by itself again, after a daemon with tor.binding = "strict" was killed'
complete -c glaneur -n "__fish_glaneur_using_subcommand tor; and __fish_seen_subcommand_from help" -f -a "check" -d 'Says whether Tor is there, bootstrapped, isolating, without Conflux, and which line of torrc mends what is wrong'
complete -c glaneur -n "__fish_glaneur_using_subcommand tor; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c glaneur -n "__fish_glaneur_using_subcommand generate" -l config -d 'Configuration; else $GLANEUR_CONFIG, else ./config.toml, else /etc/glaneur/config.toml' -r -F
complete -c glaneur -n "__fish_glaneur_using_subcommand generate" -s h -l help -d 'Print help'
complete -c glaneur -n "__fish_glaneur_using_subcommand help; and not __fish_seen_subcommand_from serve check explain circuits tor generate help" -f -a "serve" -d 'Runs the daemon (the default)'
complete -c glaneur -n "__fish_glaneur_using_subcommand help; and not __fish_seen_subcommand_from serve check explain circuits tor generate help" -f -a "check" -d 'Checks the configuration and prints every mistake at once, as file:line:column'
complete -c glaneur -n "__fish_glaneur_using_subcommand help; and not __fish_seen_subcommand_from serve check explain circuits tor generate help" -f -a "explain" -d 'Tells the whole life of one product or batch, from the ledger'
complete -c glaneur -n "__fish_glaneur_using_subcommand help; and not __fish_seen_subcommand_from serve check explain circuits tor generate help" -f -a "circuits" -d 'Shows each circuit of the running daemon: exit, age, latency, bytes, blocks by shop'
complete -c glaneur -n "__fish_glaneur_using_subcommand help; and not __fish_seen_subcommand_from serve check explain circuits tor generate help" -f -a "tor" -d 'Looks after Tor'
complete -c glaneur -n "__fish_glaneur_using_subcommand help; and not __fish_seen_subcommand_from serve check explain circuits tor generate help" -f -a "generate" -d 'Writes manual page, completions, journal catalogue and table of events below a folder'
complete -c glaneur -n "__fish_glaneur_using_subcommand help; and not __fish_seen_subcommand_from serve check explain circuits tor generate help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c glaneur -n "__fish_glaneur_using_subcommand help; and __fish_seen_subcommand_from tor" -f -a "release" -d 'Lets tor attach streams by itself again, after a daemon with tor.binding = "strict" was killed'
complete -c glaneur -n "__fish_glaneur_using_subcommand help; and __fish_seen_subcommand_from tor" -f -a "check" -d 'Says whether Tor is there, bootstrapped, isolating, without Conflux, and which line of torrc mends what is wrong'
