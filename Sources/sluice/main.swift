import Commands
import Glibc

exit(runSluice(Array(CommandLine.arguments.dropFirst())))
