// Prints the settings of a recipe: default_recipe of the bundle, or the one in the file.

#include <pyinv/bundle.h>
#include <pyinv/rules.h>

#include <fstream>
#include <iostream>
#include <iterator>
#include <string>

int main(int count, char** arguments) {
  const pyinv::Bundle bundle = pyinv::Bundle::open(arguments[1]);
  pyinv::Recipe recipe = pyinv::default_recipe(bundle);
  if (count > 2) {
    std::ifstream file(arguments[2]);
    const std::string text((std::istreambuf_iterator<char>(file)), {});
    recipe = pyinv::parse_recipe(text, bundle.prior).recipe;
  }
  std::cout << "restarts " << recipe.restarts << " keep_best " << recipe.keep_best << " start "
            << static_cast<int>(recipe.start) << " hop_size " << recipe.hop_size << "\n";
  for (const pyinv::Stage& stage : recipe.stages) {
    const pyinv::Solver& solver = stage.solver;
    const pyinv::Constraint& constraint = stage.constraint;
    const pyinv::Penalties& penalties = stage.penalties;
    std::cout << "solver " << static_cast<int>(solver.kind) << " learning_rate "
              << solver.learning_rate << " beta1 " << solver.beta1 << " beta2 " << solver.beta2
              << " epsilon " << solver.epsilon << " history " << solver.history << " first_step "
              << solver.first_step << " preconditioned " << solver.preconditioned << " schedule "
              << static_cast<int>(solver.schedule.kind) << " " << solver.schedule.final
              << "\nconstraint " << static_cast<int>(constraint.kind) << " " << constraint.low
              << " " << constraint.high << " moments " << static_cast<int>(penalties.moments) << " "
              << penalties.gamma_mean << " " << penalties.gamma_std << " prior_weight "
              << penalties.prior_weight << " " << penalties.anneal_prior << " "
              << penalties.relative_prior << "\nmax_steps " << stage.max_steps << " tolerances "
              << stage.loss_tolerance << " " << stage.change_tolerance << " "
              << stage.relative_change_tolerance << " patience " << stage.patience
              << " reset_moments " << stage.reset_moments << "\n";
  }
}
